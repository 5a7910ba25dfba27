"""Continuous batching: what goes into a forward, who waits for whom, and what becomes of each step."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from shoal.errors import ShoalError, StepFailed, Superseded
from shoal.executor.arrays import Floats
from shoal.executor.batcher import (
    LONGEST_REST_S,
    REST_SLICE_S,
    Batcher,
    ForwardOutput,
    Job,
    JobSlice,
)
from shoal.executor.schedule import (
    ALONE_ROWS,
    LEAST_ROWS,
    MAX_ROWS,
    MERGED_ROWS,
    QUIET_S,
    STRETCH,
    ForwardTimes,
    Rhythm,
    Rhythms,
    choose_batch,
    slice_rows,
)
from shoal.executor.thread import ComputeThread

TIMES = ForwardTimes(fixed=0.040, per_row=0.005)
"""A node on which a forward takes 40 ms and 5 ms more for each row."""


class ByHand(ComputeThread):
    """Runs what was posted when the test says so, on the test's own thread."""

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def post(self, function: Callable[[], None]) -> None:
        self.jobs.put(function)

    def run_one(self) -> bool:
        """Run the next job, if there is one."""
        if self.jobs.empty():
            return False
        self.jobs.get()()
        return True

    def run_all(self) -> int:
        """Run until nothing is left; the jobs run."""
        ran = 0
        while self.run_one():
            ran += 1
            assert ran < 1000
        return ran


class Bench:
    """A batcher whose span adds one to every element, and what it was given."""

    def __init__(self, *, sliced: bool = True) -> None:
        self.thread = ByHand()
        self.forwards: list[list[tuple[object, int]]] = []
        self.results: dict[object, Floats | ShoalError] = {}
        self.fail: ShoalError | None = None
        self.told: list[int] = []
        self.batcher = Batcher(self._forward, self.thread, sliced=sliced, bits="rows")

    def _forward(self, batch: Sequence[JobSlice]) -> list[ForwardOutput]:
        self.forwards.append([(piece.job.session, len(piece.hidden)) for piece in batch])
        if self.fail is not None:
            return [self.fail] * len(batch)
        return [piece.hidden + 1 for piece in batch]

    def submit(
        self,
        session: object,
        rows: int = 1,
        wanted: int | None = None,
        name: object = None,
        supersedes: Sequence[Job] = (),
    ) -> Job:
        """Ask for a step whose rows are numbered."""
        name = session if name is None else name

        def finish(job: Job, out: Floats) -> None:
            self.results[name] = out
            self.batcher.after(lambda: self.told.append(len(self.results)))

        def failed(error: ShoalError) -> None:
            self.results[name] = error

        hidden = np.arange(rows, dtype=np.float32)[:, None]
        step = Job(session, rows, rows if wanted is None else wanted, lambda: hidden, finish, failed)
        self.batcher.submit(step, lambda waiting: waiting in supersedes)
        return step


def job(session: str, rows: int) -> Job:
    """A step that nothing comes of."""
    return Job(session, rows, rows, lambda: np.zeros((rows, 1), np.float32), lambda *_: None, lambda _: None)


# ---- what is not foreseen ----


@pytest.mark.parametrize("where", ["prepare", "finish", "after"])
def test_what_is_not_foreseen_ends_that_step_and_no_other(where: str) -> None:
    bench, errors, broken = Bench(), list[ShoalError](), MemoryError("no room")

    def fail(*_: object) -> Floats:
        raise broken

    def finish(step: Job, out: Floats) -> None:
        if where == "finish":
            fail()
        bench.batcher.after(lambda: fail() and None)

    hidden = np.zeros((1, 1), np.float32)
    bench.batcher.submit(
        Job("broken", 1, 1, fail if where == "prepare" else lambda: hidden, finish, errors.append),
        lambda _: False,
    )
    bench.submit("whole")
    bench.thread.run_all()
    assert np.array_equal(bench.results["whole"], np.ones((1, 1), np.float32))
    assert [type(error) for error in errors] == ([] if where == "after" else [StepFailed])
    bench.submit("later")
    bench.thread.run_all()
    assert "later" in bench.results


# ---- what goes into a forward ----


def test_all_decode_steps_that_are_ready_run_together() -> None:
    bench = Bench()
    for session in range(8):
        bench.submit(session)
    bench.thread.run_one()
    assert bench.forwards == [[(session, 1) for session in range(8)]]
    assert all(np.array_equal(bench.results[s], np.ones((1, 1), np.float32)) for s in range(8))


def test_what_is_to_be_done_after_the_results_is_done_after_all_of_them_and_once() -> None:
    bench = Bench()
    for session in range(3):
        bench.submit(session)
    bench.thread.run_one()
    assert bench.told == [3, 3, 3]
    bench.submit(3)
    bench.thread.run_one()
    assert bench.told == [3, 3, 3, 4]


def test_what_is_superseded_before_its_turn_fails_without_a_forward() -> None:
    bench = Bench()
    bench.submit("other")
    kept = bench.submit("a", name="kept")
    useless = [bench.submit("a", name=name) for name in ("useless", "useless too")]
    bench.submit("a", name="last", supersedes=useless)
    bench.thread.run_all()
    assert bench.forwards == [[("other", 1), ("a", 1)], [("a", 1)]]
    assert isinstance(bench.results["useless"], Superseded)
    assert isinstance(bench.results["useless too"], Superseded)
    assert not isinstance(bench.results["kept"], ShoalError)
    assert not isinstance(bench.results["last"], ShoalError)
    assert kept.done == 1


def test_what_is_in_a_forward_already_is_not_superseded() -> None:
    bench = Bench()
    first = bench.submit("a", name="first")
    forward = bench._forward

    def amid(batch: Sequence[JobSlice]) -> list[ForwardOutput]:
        if not bench.forwards:
            bench.submit("a", name="second", supersedes=[first])
        return forward(batch)

    bench.batcher._forward = amid
    bench.thread.run_all()
    assert not isinstance(bench.results["first"], ShoalError)
    assert not isinstance(bench.results["second"], ShoalError)


def test_a_session_that_has_ended_hears_nothing_of_what_was_superseded() -> None:
    bench = Bench()
    first = bench.submit("a", name="first")
    bench.submit("a", name="second", supersedes=[first])
    bench.batcher.end("a", lambda: None)
    bench.thread.run_all()
    assert not bench.results


def test_a_prefill_alone_takes_all_that_a_forward_holds() -> None:
    chosen = choose_batch([job("a", 2000)], TIMES, others=False, sliced=True, bits="rows")
    assert [rows for _, rows in chosen] == [MAX_ROWS]


def test_a_prefill_beside_decode_steps_stretches_their_forward_by_a_bounded_factor() -> None:
    for decoding in (1, 4, 16):
        ready = [job("long", 4000), *(job(f"d{i}", 1) for i in range(decoding))]
        chosen = choose_batch(ready, TIMES, others=False, sliced=True, bits="rows")
        (rows,) = [rows for step, rows in chosen if step.session == "long"]
        alone, beside = (max(TIMES.fixed, n * TIMES.per_row) for n in (decoding, decoding + rows))
        assert beside <= STRETCH * alone
        assert {step.session for step, _ in chosen} == {"long", *(f"d{i}" for i in range(decoding))}


def test_a_slice_ends_behind_rows_that_see_each_other() -> None:
    class Whole(Job):
        def uncut(self, rows: int) -> int:
            return rows if rows <= 10 else max(rows, 70)

    long = Whole(
        "long", 4000, 0, lambda: np.zeros((4000, 1), np.float32), lambda job, out: None, lambda error: None
    )
    (chosen,) = choose_batch([long], TIMES, others=True, sliced=True, bits="rows")
    assert chosen == (long, 70) and ALONE_ROWS < 70


def test_a_prefill_advances_in_every_forward_however_many_decode() -> None:
    assert slice_rows(ForwardTimes(fixed=0.001, per_row=1.0), decoding=1, others=True) == LEAST_ROWS


def test_a_prefill_goes_in_bounded_slices_while_those_who_decode_are_elsewhere() -> None:
    assert slice_rows(TIMES, decoding=0, others=True) == ALONE_ROWS


def test_before_anything_was_timed_a_slice_is_small() -> None:
    assert slice_rows(ForwardTimes(), decoding=1, others=True) == LEAST_ROWS


def test_only_one_prefill_is_sliced_at_a_time_and_they_take_turns() -> None:
    bench = Bench()
    for session in "ab":
        bench.submit(session, 3 * MAX_ROWS)
    bench.thread.run_all()
    assert [forward[0][0] for forward in bench.forwards] == list("ababab")
    assert all(len(forward) == 1 for forward in bench.forwards)


def test_a_forward_is_bounded_whatever_is_ready() -> None:
    ready = [job(f"d{i}", MERGED_ROWS) for i in range(200)]
    chosen = choose_batch(ready, TIMES, others=False, sliced=True, bits="rows")
    assert sum(rows for _, rows in chosen) == MAX_ROWS


def test_where_bits_depend_on_company_steps_of_several_rows_run_beside_few_and_take_turns() -> None:
    ready = [job("long", 4000), job("a", 5), *(job(f"d{i}", 1) for i in range(9))]
    chosen = choose_batch(ready, TIMES, others=False, sliced=True, bits="batch")
    assert [step.session for step, _ in chosen] == ["a", "d0", "d1", "d2", "long"]
    single = choose_batch(ready[2:], TIMES, others=False, sliced=True, bits="batch")
    assert len(single) == 9, "as it is without guesses"
    assert len(choose_batch(ready, TIMES, others=False, sliced=True, bits="rows")) == len(ready)
    windows = [job(f"w{i}", MERGED_ROWS) for i in range(3)]
    (chosen,) = choose_batch(windows, TIMES, others=False, sliced=True, bits="batch")
    assert chosen == (windows[0], MERGED_ROWS)


def test_where_bits_depend_on_the_cut_a_prefill_runs_whole() -> None:
    bench = Bench(sliced=False)
    bench.submit("long", 3 * MAX_ROWS)
    bench.thread.run_all()
    assert bench.forwards == [[("long", 3 * MAX_ROWS)]]


# ---- what comes out ----


@pytest.mark.parametrize("wanted", [0, 1, 5, MAX_ROWS + 7, 2 * MAX_ROWS])
def test_of_a_sliced_prefill_the_last_rows_come_back_in_order(wanted: int) -> None:
    bench = Bench()
    rows = 2 * MAX_ROWS
    bench.submit("a", rows, wanted)
    bench.thread.run_all()
    out = bench.results["a"]
    assert isinstance(out, np.ndarray)
    assert out.flatten().tolist() == [i + 1 for i in range(rows)][rows - wanted :]


def test_steps_of_one_session_run_one_after_another() -> None:
    bench = Bench()
    for number in range(3):
        bench.submit("a", name=number)
    bench.thread.run_all()
    assert bench.forwards == [[("a", 1)]] * 3
    assert list(bench.results) == [0, 1, 2]


def test_a_step_that_fails_takes_nobody_with_it() -> None:
    bench = Bench()

    def refuse() -> Floats:
        raise StepFailed("not finite")

    bench.submit("good")
    bench.batcher.submit(Job("bad", 1, 1, refuse, lambda *_: None, lambda e: bench.results.update(bad=e)))
    bench.thread.run_all()
    assert isinstance(bench.results["bad"], StepFailed)
    assert isinstance(bench.results["good"], np.ndarray)


def test_a_defect_in_the_forward_ends_its_steps_and_the_next_ones_run() -> None:
    bench = Bench()
    forward = bench.batcher._forward  # pyright: ignore[reportPrivateUsage]

    def broken(_: Sequence[JobSlice]) -> list[ForwardOutput]:
        raise MemoryError("no room")

    bench.batcher._forward = broken  # pyright: ignore[reportPrivateUsage]
    bench.submit("a")
    bench.thread.run_all()
    assert isinstance(bench.results["a"], StepFailed)
    assert "MemoryError: no room" in str(bench.results["a"])
    bench.batcher._forward = forward  # pyright: ignore[reportPrivateUsage]
    bench.submit("a")
    bench.thread.run_all()
    assert isinstance(bench.results["a"], np.ndarray)


# ---- who ends ----


def test_what_an_ended_session_has_waiting_does_not_run() -> None:
    bench = Bench()
    bench.submit("a")
    released: list[str] = []
    bench.batcher.end("a", lambda: released.append("a"))
    bench.thread.run_all()
    assert bench.forwards == []
    assert released == ["a"]
    assert not bench.results


def test_what_a_session_held_is_released_before_the_next_forward() -> None:
    bench = Bench()
    bench.batcher.end("a", lambda: bench.forwards.append([("released", 0)]))
    bench.submit("b")
    bench.thread.run_all()
    assert bench.forwards == [[("released", 0)], [("b", 1)]]


def test_a_session_that_ends_while_its_step_runs_hears_nothing() -> None:
    bench = Bench()

    def end(_: Sequence[JobSlice]) -> list[ForwardOutput]:
        bench.batcher.end("a", lambda: None)
        return [np.ones((1, 1), np.float32)]

    bench.batcher._forward = end  # pyright: ignore[reportPrivateUsage]
    bench.submit("a")
    bench.thread.run_all()
    assert not bench.results


# ---- who is waited for ----


def test_a_session_is_waited_for_when_it_is_usually_back_by_then() -> None:
    rhythm = Rhythm(left=10.0, away=0.020)
    assert rhythm.due(now=10.005, until=10.030)
    assert not rhythm.due(now=10.005, until=10.015), "it is away for longer than we would wait"
    assert not rhythm.due(now=10.050, until=10.060), "it should have been back long ago"


def test_a_session_of_which_nothing_is_known_is_not_waited_for() -> None:
    assert not Rhythm(left=10.0).due(now=10.0, until=11.0)


def test_whoever_has_a_step_here_is_waited_for_no_longer() -> None:
    rhythms = Rhythms()
    rhythms.left("a", 1, 10.0)
    rhythms.came("a", 10.02)
    rhythms.left("a", 1, 11.0)
    assert rhythms.any_due(11.0, 11.03, here=())
    assert not rhythms.any_due(11.0, 11.03, here={"a"})
    rhythms.forget("a")
    assert not rhythms.any_due(11.0, 11.03, here=())


def test_a_prefill_is_sliced_for_those_who_have_decoded_lately() -> None:
    rhythms = Rhythms()
    rhythms.left("prefill", MERGED_ROWS + 1, 10.0)
    assert not rhythms.any_decodes(10.0, here=()), "a prefill says nothing about when its session is back"
    rhythms.left("decodes", 1, 10.0)
    assert rhythms.any_decodes(10.0 + QUIET_S - 0.1, here=())
    assert not rhythms.any_decodes(10.0 + QUIET_S + 0.1, here=())
    assert not rhythms.any_decodes(10.0, here={"decodes"})


def test_pace_learns_the_two_bounds_of_the_roofline() -> None:
    times = ForwardTimes()
    times.note(1, 0.040)
    times.note(64, 64 * 0.005)
    assert times.fixed == pytest.approx(0.040)
    assert times.per_row == pytest.approx(0.005)
    assert times.ridge == pytest.approx(8)


def test_a_forward_between_the_two_tells_of_the_bound_that_it_has() -> None:
    times = ForwardTimes(fixed=0.040, per_row=0.005)
    times.note(6, 0.080)  # the machine is slower now: eight sessions that decode together are to hear of it
    assert (times.fixed, times.per_row) == (pytest.approx(0.048), 0.005)
    times.note(16, 16 * 0.010)
    assert (times.fixed, times.per_row) == (pytest.approx(0.048), pytest.approx(0.006))


def test_before_the_bounds_are_known_a_forward_between_them_is_at_least_as_long_as_one_of_a_few_rows() -> (
    None
):
    times = ForwardTimes()
    times.note(8, 0.030)  # as sessions that always decode together
    assert (times.fixed, times.per_row) == (0.030, 0.0)
    times.note(16, 0.100)
    assert times.fixed == 0.030
    times.note(16, 0.020)
    assert times.fixed == pytest.approx(0.028)
    late = ForwardTimes(per_row=0.005)  # a prefill was first
    late.note(12, 0.060)
    assert (late.fixed, late.per_row) == (0.060, 0.005)


# ---- a node that takes only a share of the time ----


class Timed:
    """A batcher whose forwards take 10 ms of a pretended time, in which sleeping is the only other thing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.bench = Bench()
        forward = self.bench.batcher._forward

        def ten_ms(batch: Sequence[JobSlice]) -> list[ForwardOutput]:
            self.now += 0.010
            return forward(batch)

        self.bench.batcher._forward = ten_ms
        monkeypatch.setattr("shoal.executor.batcher.time.perf_counter", lambda: self.now)
        monkeypatch.setattr("shoal.executor.batcher.time.sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        assert 0 < seconds <= REST_SLICE_S
        self.now += seconds

    def decode(self, steps: int) -> None:
        """Steps of one session, each asked for as soon as the one before is done."""
        for _ in range(steps):
            self.bench.submit("a")
            self.bench.thread.run_all()


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_forwards_take_their_share_of_the_time(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    timed = Timed(monkeypatch)
    timed.bench.batcher.share = share
    timed.decode(21)
    assert len(timed.bench.forwards) == 21
    assert timed.bench.batcher.busy_s == pytest.approx(0.210)
    assert (timed.now - 100.0 - 0.010) * share == pytest.approx(0.200)


def test_a_session_that_is_away_for_longer_than_the_rest_does_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed = Timed(monkeypatch)
    timed.bench.batcher.share = 0.25
    for _ in range(10):
        timed.decode(1)
        timed.now += 0.030
    assert timed.now - 100.0 == pytest.approx(10 * 0.040)


def test_while_it_rests_the_thread_does_what_else_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed(monkeypatch)
    bench = timed.bench
    bench.batcher.share = 0.1
    timed.decode(1)
    bench.submit("a")
    opened: list[float] = []
    bench.thread.post(lambda: opened.append(timed.now))
    began = timed.now
    bench.thread.run_all()
    assert opened == [pytest.approx(began + REST_SLICE_S)]
    assert len(bench.forwards) == 2


def test_a_share_that_rises_ends_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed(monkeypatch)
    bench = timed.bench
    bench.batcher.share = 0.01
    timed.decode(1)
    bench.submit("a")
    bench.thread.run_one()
    bench.batcher.share = 1.0
    began = timed.now
    bench.thread.run_all()
    assert len(bench.forwards) == 2
    assert timed.now - began == pytest.approx(0.010)


def test_no_step_waits_for_longer_than_a_bound_after_a_long_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed(monkeypatch)
    timed.bench.batcher.share = 1e-6
    timed.decode(2)
    assert timed.now - 100.0 == pytest.approx(0.020 + LONGEST_REST_S)
