"""A whole model in this process: the executor without batcher, network or sampling. For one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

from shoal.client.sampling import likeliest
from shoal.client.scores import log_softmax
from shoal.config import Settings
from shoal.errors import LocalProtocolError, ShoalError
from shoal.executor.arrays import Floats, join
from shoal.executor.batcher import ForwardOutput
from shoal.executor.codecs import decode, encode
from shoal.executor.device.find import find_device
from shoal.executor.ends import EndsRunner
from shoal.executor.load import load_ends_runner, load_runner
from shoal.executor.pages import PagePool
from shoal.executor.runner import KvState, Runner, SessionRows
from shoal.executor.thread import ComputeThread
from shoal.models.store.local_model import LocalModel
from shoal.progress import Progress
from shoal.types import Codec, Format, Kv, Span

PIECE = 512
"""Tokens of one forward of a prefill."""
DEPTH = 16
"""Tokens that are cached before decoding is measured."""
STEPS = 16
"""Steps of decoding that are timed together, fewer where they take longer than ``LONGEST_S``."""
LONGEST_S = 0.5


class OneProcess:
    """The ends and all blocks. Made by :func:`load_one`; the same calls take the same time every time."""

    def __init__(self, ends: EndsRunner, runner: Runner, pool: PagePool, vocab: int) -> None:
        self._ends = ends
        self._runner = runner
        self._pool = pool
        self._vocab = vocab
        self._near: list[tuple[KvState, int]] = []
        """Sessions with ``DEPTH`` tokens cached, and the next token of each."""
        self._far: dict[int, KvState] = {}

    def decode(self, sessions: int) -> float:
        """Tokens in a second over all of so many sessions, each decoding up to ``STEPS`` tokens greedily.

        What is cached before is computed by the first call alone: each goes back to there, where it can.
        """
        if not self._runner.capabilities.roll_back:
            self._close([state for state, _ in self._near])
            self._near = []
        if new := range(len(self._near), sessions):
            states = [self._open(DEPTH + STEPS) for _ in new]
            prompts = [[(7 * i + j) % self._vocab for j in range(DEPTH)] for i in new]
            self._near += zip(states, self._chosen(states, 0, prompts), strict=True)
        near = self._near[:sessions]
        return self._decoded([state for state, _ in near], DEPTH, [token for _, token in near])

    def fill(self, context: int, progress: Progress) -> None:
        """Make a session with so many tokens cached, for :meth:`decode_after`."""
        if context not in self._far:
            state = self._open(context + STEPS)
            self._fill(state, context, partial(progress, f"computing {context} tokens of context"))
            self._far[context] = state

    def decode_after(self, context: int) -> float:
        """Tokens in a second of one session that has ``context`` tokens cached: it goes back to there.

        Raises:
            LocalProtocolError: :meth:`fill` made no session of that length.
        """
        if context not in self._far:
            raise LocalProtocolError(f"no session with {context} tokens")
        return self._decoded([self._far[context]], context, [1])

    def _decoded(self, states: Sequence[KvState], position: int, tokens: list[int]) -> float:
        """Tokens in a second over all of ``states``, whose next ones are ``tokens``."""
        began = time.perf_counter()
        steps = 0
        while steps < STEPS and (steps < 2 or time.perf_counter() - began < LONGEST_S):
            tokens = self._chosen(states, position + steps, [[token] for token in tokens])
            steps += 1
        return len(states) * steps / (time.perf_counter() - began)

    def prefill(self, tokens: int) -> float:
        """Tokens in a second of a prompt of so many, to its last token's logits."""
        state = self._open(tokens)
        try:
            began = time.perf_counter()
            self._fill(state, tokens)
            return tokens / (time.perf_counter() - began)
        finally:
            self._close([state])

    def _fill(self, state: KvState, tokens: int, tell: Callable[[int, int], None] | None = None) -> None:
        prompt = [(11 * i) % self._vocab for i in range(tokens)]
        for at in range(0, tokens, PIECE):
            if tell is not None:
                tell(at, tokens)
            self._chosen([state], at, [prompt[at : at + PIECE]])

    def ends_seconds(self, sessions: int) -> float:
        """What the embedding and the head take for a step of so many sessions: the median of five."""
        hidden = [np.zeros((1, self._runner.width), np.float32) for _ in range(sessions)]
        took: list[float] = []
        for _ in range(5):
            began = time.perf_counter()
            for position in range(sessions):
                self._ends.embed([0], position)
            _all(self._ends.heads(hidden))
            took.append(time.perf_counter() - began)
        return median(took)

    def losses(self, window: Sequence[int], wire: Codec, hops: int) -> Floats:
        """The negative log likelihood, in nats, of each token of ``window`` after the first.

        Args:
            wire: how hidden states go from the client through the hops and back.
            hops: spans that the blocks are cut into.
        """
        edges = [len(self._runner.span) * i // hops for i in range(hops + 1)]
        states = [self._open(len(window), Span(a, b)) for a, b in pairwise(edges)]
        found: list[Floats] = []
        try:
            for position in range(0, len(window), PIECE):
                piece = window[position : position + PIECE]
                hidden = _through(self._ends.embed(piece, position), wire)
                for state in states:
                    rows = SessionRows(state, position, hidden, len(window))
                    hidden = _through(_all(self._runner.forward([rows]))[0], wire)
                following = window[position + 1 : position + 1 + len(piece)]
                logits = _all(self._ends.heads([hidden[: len(following)]]))[0]
                found.append(-log_softmax(logits)[range(len(following)), following])
            return join(found)
        finally:
            self._close(states)

    def _chosen(self, states: Sequence[KvState], position: int, pieces: Sequence[list[int]]) -> list[int]:
        """The most likely token of each session after its piece."""
        rows = [
            SessionRows(state, position, self._ends.embed(piece, position))
            for state, piece in zip(states, pieces, strict=True)
        ]
        hidden = [out[-1:] for out in _all(self._runner.forward(rows))]
        return [likeliest(logits[-1]) for logits in _all(self._ends.heads(hidden))]

    def _open(self, tokens: int, span: Span | None = None) -> KvState:
        return self._runner.open(span or self._runner.span, self._pool.promise(tokens))

    def _close(self, states: Sequence[KvState]) -> None:
        for state in states:
            state.pages.resize(0)
            self._pool.forget(state.pages)


def _through(hidden: Floats, wire: Codec) -> Floats:
    return decode(encode(hidden, wire), wire, *hidden.shape)


def _all(outcomes: Sequence[ForwardOutput]) -> list[Floats]:
    found: list[Floats] = []
    for outcome in outcomes:
        if isinstance(outcome, ShoalError):
            raise outcome
        found.append(outcome)
    return found


async def load_one(
    thread: ComputeThread, model: LocalModel, settings: Settings, format: Format, *, kv: Kv, tokens: int
) -> OneProcess:
    """Load a model in ``format`` on ``thread``, onto ``settings.device``, with KV for ``tokens`` tokens.

    Raises:
        ShoalError: it cannot be loaded, or that device is not here.
    """

    def load() -> OneProcess:
        span = Span(0, model.shape.n_blocks)
        options: dict[str, Any] = {"threads": settings.threads, "cache": settings.paths.cache}
        options["device"] = find_device(settings.device).device.name
        runner = load_runner(model, span, format, kv=kv, **options)
        ends = load_ends_runner(model, format, **options)
        return OneProcess(ends, runner, runner.make_pool(tokens), model.shape.vocab_size)

    return await thread.run(load)
