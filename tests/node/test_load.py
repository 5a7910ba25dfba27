"""What a node says of its load: smoothed decode steps of the span that new sessions go to."""

from __future__ import annotations

import pytest

from shoal.errors import StepFailed
from shoal.executor.engine import StepOutput
from shoal.node.load import LoadMeter, phase_of
from shoal.testing.byhand import a_step
from shoal.types import PeerId, Span

SPAN = Span(0, 6)


def a_meter(step_s: float = 0.002) -> LoadMeter:
    return LoadMeter(PeerId("me"), step_s)


def took(ms: float, waiting_ms: float = 0.0) -> StepOutput:
    return StepOutput(b"", round(1000 * ms), round(1000 * waiting_ms))


def test_before_anybody_asks_it_says_what_was_measured_at_the_start() -> None:
    assert (a_meter().step_ms, a_meter().wait_ms) == (2.0, 0.0)


def test_decode_steps_move_what_it_says_and_prefills_do_not() -> None:
    load = a_meter()
    load.note_step(SPAN, a_step(8, tokens=1), took(12.0, 5.0), announced=True)
    assert (load.step_ms, load.wait_ms) == (pytest.approx(3.0), pytest.approx(0.5))
    load.note_step(SPAN, a_step(8, tokens=2), took(500.0), announced=True)
    assert load.step_ms == pytest.approx(3.0)
    assert load.steps == 2


@pytest.mark.parametrize(
    ("tokens", "wanted", "phase"),
    [
        (1, 1, "decode"),
        (1, 0, "decode"),
        (5, 5, "verify"),
        (8, 8, "verify"),
        (5, 1, "prefill"),
        (9, 9, "prefill"),
    ],
)
def test_a_step_of_several_tokens_that_are_all_wanted_back_verifies_guesses(
    tokens: int, wanted: int, phase: str
) -> None:
    assert phase_of(a_step(8, tokens=tokens, wanted=wanted)) == phase


def test_a_span_whose_speed_nobody_measured_begins_with_its_first_step() -> None:
    load = a_meter(0.0)
    load.note_step(SPAN, a_step(8, tokens=1), took(12.0), announced=True)
    assert load.step_ms == pytest.approx(12.0)


def test_what_runs_on_a_span_that_the_node_has_left_is_counted_and_not_announced() -> None:
    load = a_meter()
    load.note_step(SPAN, a_step(8, tokens=1), took(12.0), announced=False)
    assert (load.steps, load.step_ms) == (1, 2.0)


def test_a_node_that_was_slow_forgets_it_when_nobody_is_left() -> None:
    load = a_meter()
    load.note_step(SPAN, a_step(8, tokens=1), took(900.0, 100.0), announced=True)
    load.reset(0.002)
    assert (load.step_ms, load.wait_ms) == (2.0, 0.0)


def test_steps_failures_refusals_and_reroutes_are_figures() -> None:
    load = a_meter()
    load.note_step(SPAN, a_step(8, tokens=1), took(12.0), announced=True)
    load.note_failure(StepFailed("x"))
    load.note_refusal(StepFailed("x"))
    load.note_reroute(resent=True)
    load.note_reroute(resent=False)
    text = load.metrics.text().decode()
    for line in (
        'shoal_steps_total{phase="decode"} 1.0',
        'shoal_failures_total{code="step_failed"} 1.0',
        'shoal_refusals_total{code="step_failed"} 1.0',
        'shoal_reroutes_total{way="resend"} 1.0',
        'shoal_reroutes_total{way="neighbour"} 1.0',
    ):
        assert line in text
    (step,) = load.trace.steps
    assert step.hops[0].span == "0:6"
