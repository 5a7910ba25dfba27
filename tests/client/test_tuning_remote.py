"""Whatever a hop says instead of an answer, another takes its place; and what no hop can do is told."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from shoal import errors
from shoal.client.ring.hop import RouteHop
from shoal.client.tuning import remote
from shoal.client.tuning.data import Example
from shoal.client.tuning.factors import TunedAdapter, TunedLayers
from shoal.client.tuning.remote import NotFinite, RemoteBlocks
from shoal.client.tuning.tuner import Tuner, TuningOptions
from shoal.errors import NoCoverage, ShoalError, StepFailed, from_code
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
    passed = await blocks.forward(HIDDEN, [3])
    return passed, await blocks.backward(passed, HIDDEN)


@pytest.mark.parametrize("code", sorted(codes()))
async def test_a_hop_that_says_any_error_is_replaced(autojump_clock, code):
    peers = Peers({"one": code, "two": 1.0})
    blocks = peers.blocks()
    passed, found = await blocks.step(lambda: through(blocks))
    assert np.array_equal(passed.out, np.ones_like(HIDDEN))
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
        passed = await blocks.forward(HIDDEN, [3])
        await blocks.backward(passed, HIDDEN * float("inf"))

    with pytest.raises(NotFinite, match="gradients of the loss"):
        await blocks.step(run)
    assert not peers.suspected


async def test_steps_of_no_finite_numbers_are_skipped_and_counted(tmp_path):
    async def fails(run):
        raise NotFinite("no")

    blocks = SimpleNamespace(step=fails, replaced=0)
    local = SimpleNamespace(digest=SHAPE.digest, name="fish", shape=SHAPE)
    adapter = TunedAdapter(TunedLayers("model.layers", {"q_proj": (8, 8)}, 4), rank=2, alpha=2, seed=0)
    examples = [Example((1, 2, 3), 1)] * 6
    options = TuningOptions(batch_tokens=2, most_bad=4)
    tuner = Tuner(local, adapter, blocks, None, None, examples, examples, options, tmp_path / "out")
    skipped = []
    with pytest.raises(StepFailed, match="in 4 steps one after another"):
        async for step in tuner.run():
            skipped.append(step.skipped)
    assert skipped == [1, 2, 3]
    assert np.isnan(await tuner.evaluate(examples))
