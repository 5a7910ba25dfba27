"""A span over two processes: what one gives, from half of the bytes each; and the end when one is lost."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
import trio

from shoal.errors import PositionGap, StepFailed, UnsupportedModel, UsageError
from shoal.executor.engine import Engine
from shoal.executor.load import load_runner
from shoal.executor.parallel.messages import Drop, PreparePart, RunStep, read_order, write
from shoal.executor.parallel.shard import Follower
from shoal.executor.parallel.span import ParallelRunner, ParallelSpan, load_parallel
from shoal.executor.thread import ComputeThread
from shoal.models.build.load import load_span_module
from shoal.models.build.span import SpanModule
from shoal.models.store.local_model import LocalModel
from shoal.types import SessionId, Span

SPAN = Span(1, 5)
NEAR = 1e-5
"""What two processes give may differ so much from what one gives, of the largest element: sums of halves."""

Local = Callable[[str], LocalModel]


@dataclass
class Both:
    two: ParallelSpan
    one: SpanModule

    def hidden(self, tokens: int, seed: int = 0) -> torch.Tensor:
        return torch.randn(1, tokens, self.one.width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def local(families: Local) -> Local:
    return families


# Of every family that has a plan, test_split_families.py shows that two processes give what one gives.
@pytest.fixture(scope="class", params=["llama", "mixtral"])
def both(request: pytest.FixtureRequest, local: Local) -> Iterator[Both]:
    model = local(request.param)
    two = load_parallel(model, SPAN, "fp32", ranks=2, threads=2)
    try:
        yield Both(two, load_span_module(model, SPAN))
    finally:
        two.close()


@pytest.mark.swarm
class TestTwoProcesses:
    def test_each_holds_half_of_the_weights_and_of_the_kv(self, both: Both) -> None:
        assert len(both.two.rank_bytes) == 2
        assert max(both.two.rank_bytes) < 0.51 * both.one.tensor_bytes
        assert both.two.tensor_bytes == sum(both.two.rank_bytes)
        assert both.two.kv_bytes(100) == both.one.kv_bytes(100)

    def test_they_give_what_one_gives(self, both: Both) -> None:
        hidden = both.hidden(12)
        pieces = ((0, 7), (7, 8), (8, 12))
        assert near(run(both.two, hidden, pieces), run(both.one, hidden, pieces))

    def test_sessions_know_nothing_of_each_other(self, both: Both) -> None:
        one, other = both.hidden(6, seed=1), both.hidden(6, seed=2)
        mine, theirs = both.two.new_cache(), both.two.new_cache()
        for at in range(6):
            ours = both.two.forward(one[:, at : at + 1], mine, at)
            both.two.forward(other[:, at : at + 1], theirs, at)
        assert near(ours, run(both.one, one, ((0, 6),))[:, -1:])

    def test_a_cache_that_is_longer_rolls_back(self, both: Both) -> None:
        hidden, other = both.hidden(8), both.hidden(8, seed=3)
        cache = both.two.new_cache()
        both.two.forward(torch.cat([hidden[:, :4], other[:, 4:]], 1), cache, 0)
        again = both.two.forward(hidden[:, 4:], cache, 4)
        assert near(again, run(both.one, hidden, ((0, 8),))[:, 4:])
        assert near(both.two.forward(other, cache, 0), run(both.one, other, ((0, 8),)))

    def test_some_of_the_blocks_are_a_span_too(self, both: Both) -> None:
        hidden = both.hidden(5)
        for span in (
            Span(2, 4),
            Span(1, 2),
            Span(4, 5),
            Span(1, 3),
            Span(3, 5),
            Span(2, 4),
        ):  # more than are kept
            two, one = both.two.part(span), both.one.part(span)
            assert near(run(two, hidden, ((0, 4), (4, 5))), run(one, hidden, ((0, 4), (4, 5))))
        with pytest.raises(UsageError):
            both.two.part(Span(0, 3))

    def test_what_is_refused_leaves_them_together(self, both: Both) -> None:
        hidden = both.hidden(3)
        cache = both.two.new_cache()
        with pytest.raises(PositionGap):
            both.two.forward(hidden, cache, 1)
        with pytest.raises(StepFailed):
            both.two.forward(hidden.double(), cache, 0)
        assert near(both.two.forward(hidden, cache, 0), run(both.one, hidden, ((0, 3),)))

    def test_what_fails_in_both_alike_leaves_them_together(self, both: Both) -> None:
        beyond = Span(0, 99)
        with pytest.raises(UsageError):
            both.two.team.run(PreparePart(beyond), lambda: both.two.team.shard.whole.part(beyond))
        hidden = both.hidden(3)
        assert near(run(both.two, hidden, ((0, 3),)), run(both.one, hidden, ((0, 3),)))

    def test_a_second_such_span_in_one_process_is_refused(self, both: Both, local: Local) -> None:
        with pytest.raises(UsageError, match="part of another span"):
            load_parallel(local("llama"), SPAN, "fp32", ranks=2, threads=2)
        both.two.forward(torch.zeros(1, 1, both.two.width), both.two.new_cache(), 0)

    def test_a_session_that_is_over_is_forgotten_in_both(
        self, both: Both, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dropped: list[int] = []
        monkeypatch.setattr(both.two.team.ranks, "drop", dropped.append)
        cache = both.two.new_cache()
        number = cache.number
        del cache
        assert dropped == [number]


def test_the_other_process_keeps_a_session_until_it_is_told_to_drop_it() -> None:
    follower = Follower(1)
    follower.shard = AnyShard()  # pyright: ignore[reportAttributeAccessIssue]
    follower.obey(read_order(write(RunStep(SPAN, cache=7, position=0, tokens=3))))
    follower.obey(read_order(write(RunStep(SPAN, cache=8, position=0, tokens=3))))
    follower.obey(read_order(write(Drop(7))))
    assert list(follower.caches) == [8]


@pytest.mark.swarm
def test_weights_of_16_bits_and_kv_of_8_are_held_so(local: Local) -> None:
    model = local("qwen3")
    two = load_parallel(model, SPAN, "bf16", kv="int8", ranks=2, threads=2)
    try:
        one = load_span_module(model, SPAN, "bfloat16", kv_as="int8")
        assert two.tensor_bytes == pytest.approx(one.tensor_bytes, rel=0.02)
        assert two.kv_bytes(1000) == one.kv_bytes(1000) < load_span_module(model, SPAN).kv_bytes(1000) / 2
        hidden = torch.randn(1, 4, two.width, generator=torch.Generator().manual_seed(0)).bfloat16()
        given, expected = (run(span, hidden, ((0, 3), (3, 4))).float() for span in (two, one))
        assert (given - expected).norm() < 0.02 * expected.norm()  # both round to 8 bits of mantissa
    finally:
        two.close()


@pytest.mark.swarm
async def test_a_process_that_dies_ends_the_steps_and_who_watches(local: Local, tmp_path: Path) -> None:
    load = {"kv": "auto", "threads": 2, "cache": tmp_path, "parallel": 2}
    others = set(psutil.Process().children())
    runner = load_runner(local("llama"), SPAN, "fp32", **load)
    assert isinstance(runner, ParallelRunner)
    (child,) = set(psutil.Process().children()) - others
    thread = ComputeThread()
    engine = Engine(runner, runner.make_pool(64), thread, format="fp32")
    session = SessionId(bytes(16))
    with trio.fail_after(60), pytest.RaisesGroup(pytest.RaisesExc(StepFailed, match="rank 1 of 2 has ended")):
        async with runner.watched():
            await engine.open(session)
            engine.grow(session, 16)
            assert not isinstance(await step(engine, session, 0), Exception)
            child.kill()
            await trio.sleep_forever()
    assert isinstance(await step(engine, session, 1), StepFailed)
    assert not child.is_running()
    thread.close()


@pytest.mark.swarm
def test_a_process_that_hangs_ends_the_step_by_its_deadline(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.executor.parallel.ranks.GRACE_S", 0.5)
    others = set(psutil.Process().children())
    two = load_parallel(local("llama"), SPAN, "fp32", ranks=2, threads=2, deadline_s=5.0)
    (child,) = set(psutil.Process().children()) - others
    try:
        child.send_signal(signal.SIGSTOP)
        with pytest.raises(StepFailed, match="rank 1 does not answer"):
            two.forward(torch.zeros(1, 1, two.width), two.new_cache(), 0)
        assert two.wait_lost() is not None
    finally:
        two.close()
    assert not child.is_running()


class TestRefusals:
    def test_a_family_without_a_plan(self, local: Local) -> None:
        with pytest.raises(UnsupportedModel, match="no plan to split a gpt2 model") as refused:
            load_parallel(local("gpt2"), SPAN, "fp32", ranks=2, threads=2)
        assert "several nodes" in refused.value.check

    def test_heads_that_cannot_be_shared_out(self, local: Local) -> None:
        with pytest.raises(UsageError, match="2 key and value heads cannot be shared out to 4 processes"):
            load_parallel(local("llama"), SPAN, "fp32", ranks=4, threads=4)

    def test_a_format_of_the_kernels(self, local: Local) -> None:
        with pytest.raises(UsageError, match="cannot be held in int8"):
            load_parallel(local("llama"), SPAN, "int8", ranks=2, threads=2)

    @pytest.mark.swarm
    def test_a_span_beyond_the_model(self, local: Local) -> None:
        others = set(psutil.Process().children())
        with pytest.raises(UsageError, match="goes beyond"):
            load_parallel(local("llama"), Span(0, 7), "fp32", ranks=2, threads=2)
        assert set(psutil.Process().children()) == others


class AnyShard:
    """In place of a process's part: steps do nothing."""

    def __init__(self) -> None:
        self.whole = self

    def part(self, span: Span) -> AnyShard:
        return self

    def new_cache(self) -> object:
        return object()

    def step(self, order: RunStep, cache: object, hidden: torch.Tensor | None) -> None:
        assert hidden is None


async def step(engine: Engine, session: SessionId, position: int) -> object:
    """One token's step: what came of it."""
    done = trio.Event()
    outcome: list[object] = []
    token = trio.lowlevel.current_trio_token()

    def told(result: object) -> None:
        outcome.append(result)
        token.run_sync_soon(done.set)

    payload = bytes(4 * engine.width)
    engine.submit(session, position, payload, "float32", 1, 1, "float32", told)
    await done.wait()
    return outcome[0]


def run(
    span: ParallelSpan | SpanModule, hidden: torch.Tensor, pieces: tuple[tuple[int, int], ...]
) -> torch.Tensor:
    """One session's tokens, in pieces."""
    cache = span.new_cache()
    return torch.cat([span.forward(hidden[:, a:b], cache, a) for a, b in pieces], 1)


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= NEAR * b.abs().max())
