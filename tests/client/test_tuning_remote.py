"""Whatever a hop says instead of an answer, another takes its place; and what no hop can do is told."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import trio

from shoal import errors
from shoal.client.ring.hop import RouteHop
from shoal.client.tuning import remote
from shoal.client.tuning.data import Example
from shoal.client.tuning.factors import TunedAdapter, TunedLayers
from shoal.client.tuning.remote import NotFinite, RemoteBlocks
from shoal.client.tuning.tuner import Tuner, TuningOptions
from shoal.errors import NoCoverage, ShoalError, StepFailed, UsageError, from_code
from shoal.types import Digest, ModelShape, Numerics, PeerAddress, PeerId, Span

SHAPE = ModelShape("fish", Digest("sha256:" + "f" * 64), 4, 8, 256, 384)
HIDDEN = np.full((3, 8), 0.5, np.float32)


def codes(kind=ShoalError):
    own = {kind.code} if kind.__module__ == errors.__name__ else set()
    return own.union(*map(codes, kind.__subclasses__()))


class Peers:
    """Peers that serve all blocks, each of which answers what it is told to."""

    def __init__(self, answers):
        self.answers = answers
        self.asked: list[tuple[str, Span]] = []
        self.sizes: list[int] = []
        self.suspected: list[str] = []
        self.finder = SimpleNamespace(
            among_training=lambda: self.finder,
            served_numerics=self._numerics,
            find=self._find,
            suspect=self.suspected.append,
            wait_news=self._news,
        )
        self.training = SimpleNamespace(number=lambda: len(self.asked), ask=self._ask)

    async def reach(self, address, deadline_s):
        return address.peer

    async def _numerics(self, shape, span):
        return [Numerics("fp32", "auto", "any")]

    async def _news(self, within_s):
        pass

    def _find(self, shape, numerics, tokens, avoid, *, span):
        left = [peer for peer in self.answers if peer not in avoid]
        if not left:
            raise NoCoverage("nobody")
        return [RouteHop(PeerAddress(PeerId(left[0]), (), ()), span)]

    async def _ask(self, channel, message, payload, within_s):
        self.asked.append((channel, Span(message.start, message.end)))
        self.sizes += [len(payload), message.answer_size]
        assert len(payload) == message.size
        answer = self.answers[channel]
        if isinstance(answer, str):
            raise from_code(answer, "no")
        return np.full(message.answer_size // 4, answer, np.float32).tobytes()

    def blocks(self, **layers):
        sizes = layers or {"q_proj": (8, 8)}
        adapter = TunedAdapter(TunedLayers("model.layers", sizes, 4), rank=2, alpha=2, seed=0)
        return RemoteBlocks(self, SHAPE, adapter, within_s=5.0, resume_s=5.0)


async def through(blocks):
    passed, out = await blocks.forward(HIDDEN, [3])
    return out, (await blocks.backward(passed, HIDDEN)).factors


@pytest.mark.parametrize("code", sorted(codes()))
async def test_a_hop_that_says_any_error_is_replaced(autojump_clock, code):
    peers = Peers({"one": code, "two": 1.0})
    blocks = peers.blocks()
    out, found = await blocks.step(lambda: through(blocks))
    assert np.array_equal(out, np.ones_like(HIDDEN))
    assert [span for span, _ in found] == [Span(0, 4)]
    assert peers.suspected == ["one"]
    assert blocks.replaced == 1


@pytest.mark.parametrize("answers", [{"one": float("nan"), "two": float("inf")}, {"one": "step_failed"}])
async def test_numbers_that_are_not_finite_on_a_second_route_are_the_steps_fault(autojump_clock, answers):
    peers = Peers(answers)
    blocks = peers.blocks()
    with pytest.raises(NotFinite):
        await blocks.step(lambda: through(blocks))
    assert len(peers.asked) == remote.MOST_FAILED


async def test_gradients_that_are_not_finite_are_nobody_elses_fault(autojump_clock):
    peers = Peers({"one": 1.0})
    blocks = peers.blocks()

    async def run():
        passed, _ = await blocks.forward(HIDDEN, [3])
        await blocks.backward(passed, HIDDEN * float("inf"))

    with pytest.raises(NotFinite, match="gradients of the loss"):
        await blocks.step(run)
    assert not peers.suspected


async def test_a_hop_that_does_not_know_us_is_asked_something_short_first(autojump_clock, monkeypatch):
    monkeypatch.setattr(remote, "SHORT", 200)
    peers = Peers({"one": 1.0})
    blocks = peers.blocks(q_proj=(8, 8), k_proj=(4, 8))
    await blocks.step(lambda: through(blocks))
    await blocks.step(lambda: through(blocks))
    asked, whole = peers.sizes[::2], 4 * (24 + 4 * 2 * 28)
    # One token, and of the smaller layer one row and column for each of as many blocks as fit.
    assert asked == [4 * (8 + 3 * 12), whole, whole + 4 * 24, whole, whole + 4 * 24]
    assert peers.asked[0][1] == Span(0, 3)
    await trio.sleep(remote.KNOWN_S + 1)
    await blocks.step(lambda: through(blocks))
    assert peers.sizes[::2][5] == asked[0]


def tuner_of(tmp_path, examples, options, most_rows=1000, **blocks):
    remote_blocks = SimpleNamespace(replaced=0, most_rows=most_rows, **blocks)
    local = SimpleNamespace(digest=SHAPE.digest, name="fish", shape=SHAPE)
    adapter = TunedAdapter(TunedLayers("model.layers", {"q_proj": (8, 8)}, 4), rank=2, alpha=2, seed=0)
    folder = tmp_path / "out"
    return Tuner(local, adapter, remote_blocks, None, None, examples, examples, options, folder)


async def test_steps_of_no_finite_numbers_are_skipped_and_counted(tmp_path):
    async def fails(run):
        raise NotFinite("no")

    examples = [Example((1, 2, 3), 1)] * 6
    tuner = tuner_of(tmp_path, examples, TuningOptions(batch_tokens=2, most_bad=4), step=fails)
    skipped = []
    with pytest.raises(StepFailed, match="in 4 steps one after another"):
        async for step in tuner.run():
            skipped.append(step.skipped)
    assert skipped == [1, 2, 3]
    assert np.isnan(await tuner.evaluate(examples))


@pytest.mark.parametrize("limit", [8 * 8 * 3 + 128, 8 * 8 * 3 + 300, 1 << 20])
async def test_no_question_is_larger_than_a_message(autojump_clock, monkeypatch, limit):
    monkeypatch.setattr(remote, "MAX_PAYLOAD", limit)
    peers = Peers({"one": 1.0})
    blocks = peers.blocks()
    _, found = await blocks.step(lambda: through(blocks))
    assert max(peers.sizes) <= limit
    covered = [block for span, _ in reversed(found) for block in range(span.start, span.end)]
    assert covered == [0, 1, 2, 3]
    blocks_at_once = {8 * 8 * 3 + 128: 1, 8 * 8 * 3 + 300: 2, 1 << 20: 4}[limit]
    assert {len(span) for _, span in peers.asked} == {blocks_at_once}
    for span, gradients in found:
        assert len(gradients) == len(span) * 2 * 16
    assert blocks.most_rows >= 3


async def test_an_adapter_of_which_no_block_fits_a_message_is_refused(monkeypatch):
    with pytest.raises(UsageError, match="65 linear layers"):
        Peers({}).blocks(**{f"layer{i}": (8, 8) for i in range(65)})
    monkeypatch.setattr(remote, "MAX_PAYLOAD", 128)
    with pytest.raises(UsageError, match="an adapter of rank 2 has"):
        Peers({}).blocks()


def test_batches_are_no_larger_than_a_question_may_be(tmp_path):
    options = TuningOptions(batch_tokens=1 << 20)
    tuner = tuner_of(tmp_path, [Example((1, 2), 1)] * 600, options)
    assert sorted(len(batch) for step in tuner._plan for batch in step) == [88, 256, 256]
    tuner = tuner_of(tmp_path, [Example((1,) * 40, 1)] * 10, options, most_rows=100)
    assert [len(batch) for step in tuner._plan for batch in step] == [2] * 5
    with pytest.raises(UsageError, match=r"the data, line 7: an example of 102 tokens.* of 100 fit"):
        tuner_of(tmp_path, [Example((1,) * 102, 1, 7)], options, most_rows=100)


@pytest.mark.parametrize(
    "given",
    [
        {"accumulate": 0},
        {"save_every": 0},
        {"evaluate_every": 0},
        {"epochs": 0},
        {"batch_tokens": 0},
        {"most_bad": 0},
        {"rank": 0},
        {"rate": float("nan")},
        {"clip": -1.0},
        {"alpha": 0.0},
        {"alpha": 1e6},
        {"alpha": float("inf")},
    ],
)
def test_options_that_cannot_be_are_refused_by_name(given):
    with pytest.raises(UsageError, match=f"{next(iter(given))} is"):
        TuningOptions(**given)
