"""The whole model in one process, by what nodes and clients run: a swarm gives the same bits.

How near these are to what transformers gives is shown in ``tests/executor`` and ``tests/models``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoal import config
from shoal.executor.arrays import Floats
from shoal.executor.batcher import ForwardOutput
from shoal.executor.load import load_ends_runner, load_runner
from shoal.executor.runner import SessionRows
from shoal.models.store.store import ModelStore
from shoal.types import Format, Span

FORMAT: Format = "int8"
"""Of Llama's shape it runs on the C kernels, as most that people run does: nothing imports torch, which takes
seconds, and the bits of rows are the same in any company."""
KERNELS: dict[str, Any] = {"format": FORMAT, "wire": "float32"}
"""Settings of a swarm that gives what :class:`OneProcess` gives: nothing is rounded on its way."""
LONGEST = 1024
"""Tokens of its session, where the model's context has as many."""


class OneProcess:
    """A model, whole, and one session of it.

    Args:
        home: whose store knows the model.
        model: its name, or its folder.
    """

    def __init__(self, home: Path, model: Path | str, format: Format = FORMAT) -> None:
        paths = config.load({}, {"SHOAL_HOME": str(home)}).paths
        found = ModelStore(paths.models).resolve(str(model))
        span, tokens = Span(0, found.shape.n_blocks), min(found.shape.context, LONGEST)
        self._ends = load_ends_runner(found, format, threads=1, cache=paths.cache)
        self._blocks = load_runner(found, span, format, kv="auto", threads=1, cache=paths.cache)
        self._state = self._blocks.open(span, self._blocks.make_pool(tokens).promise(tokens))
        self._length = 0

    def restart(self) -> None:
        """Begin the session anew."""
        self._length = 0

    def step(self, tokens: Sequence[int]) -> Floats:
        """The logits after each of the next tokens, ``[tokens, vocab]``."""
        rows = SessionRows(self._state, self._length, self._ends.embed(tokens, self._length))
        logits = _sound(self._ends.heads([_sound(self._blocks.forward([rows]))]))
        self._length += len(tokens)
        return logits

    def logits(self, pieces: Sequence[Sequence[int]]) -> list[Floats]:
        """The logits ``[tokens, vocab]`` after each piece of a session from its start."""
        self.restart()
        return [self.step(piece) for piece in pieces]

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The ``count`` likeliest tokens after ``prompt``, one after another, whatever they are."""
        self.restart()
        chosen, piece = list[int](), prompt
        while len(chosen) < count:
            chosen.append(int(self.step(piece)[-1].argmax()))
            piece = chosen[-1:]
        return chosen


def _sound(outputs: Sequence[ForwardOutput]) -> Floats:
    (output,) = outputs
    assert not isinstance(output, Exception), output
    return output
