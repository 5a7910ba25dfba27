"""Blocks of a span run one at a time, with all that a proof of their products is about.

A hop runs a window of a session again, over the keys and values that it has of the positions before: in
numerics whose bits depend on nothing else, that gives what it gave before. The window's own go elsewhere:
whatever rows are given, the session's stay as they are. Whoever checks a proof runs the same block over what
the hop shows: sums are taken from there, and nothing is multiplied.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from shoal.errors import LocalProtocolError, NotAllowed, RemoteProtocolError
from shoal.executor.arrays import Array, Floats, address
from shoal.executor.kernels.c_kernels import Matrix, ThreadTeam
from shoal.executor.kernels.structs import ADAPTABLE, SequenceStruct, SpanStruct, TapeStruct
from shoal.executor.kernels.tiles import quads_by_row
from shoal.executor.pages import PAGE, PagePool, Pages
from shoal.executor.weights.llama_blocks import LayerWeights
from shoal.types import Span

PROVABLE = ("int8", "w8a8")
"""Layouts of matrices whose products are sums of integers over a whole row."""


@dataclass(frozen=True, slots=True)
class TracedBlock:
    """One block's forward of a window."""

    came: Floats
    """``[n, width]``"""
    went: Floats
    inputs: tuple[Array, ...]
    """int16 ``[n, in]``, of each product, in the order of ``ADAPTABLE``."""
    sums: tuple[Array, ...]
    """int32 ``[n, out]``"""
    past: bytes
    """The keys and values of the positions before, page by page, as they are kept."""


class CachedTokens(Protocol):
    """What is needed of a session's KV (``KvState``)."""

    @property
    def pages(self) -> Pages: ...

    @property
    def length(self) -> int:
        """Tokens cached."""
        ...


def check_provable(layers: Sequence[LayerWeights]) -> None:
    """Refuse blocks of whose products there are no proofs.

    Raises:
        NotAllowed: a matrix has floats, or integers that are scaled in groups.
    """
    layouts = {matrix.layout for weights in layers for matrix in weights.matrices.values()}
    if unfit := sorted(layouts - set(PROVABLE)):
        raise NotAllowed(
            f"these blocks have weights in {', '.join(unfit)}: proofs are of int8 and w8a8 alone",
            check="ask for a protection other than proved, or for nodes that serve the model in int8",
            next_command="shoal run --protect audited MODEL PROMPT",
        )


def weight_integers(matrix: Matrix) -> Array:
    """The weights as they are multiplied, int8 ``[rows, cols]``."""
    if matrix.layout == "w8a8":
        return quads_by_row(matrix.weights, matrix.rows, matrix.cols)
    return matrix.weights


class BlockTracer:
    """For one span, on the thread that computes.

    Args:
        struct: what the kernels know of the span.
        pool: where its KV lies.
    """

    def __init__(
        self,
        team: ThreadTeam,
        struct: SpanStruct,
        span: Span,
        layers: Sequence[LayerWeights],
        pool: PagePool,
    ) -> None:
        check_provable(layers)
        self._team, self._struct, self._layers = team, struct, layers
        self.pool = pool
        """Where KV lies."""
        self.span, self.width = span, struct.hidden
        self._own: Pages | None = None

    def over(self, own: Pages) -> BlockTracer:
        """The same, which runs windows of sessions over pages of its own: as many as a window's rows need."""
        made = copy(self)
        made._own = own
        return made

    def products(self, block: int) -> list[tuple[int, int]]:
        """What goes out and what comes in of each of a block's four products."""
        return [(matrix.rows, matrix.cols) for matrix in self._matrices(block)]

    def past_bytes(self, position: int) -> int:
        """Bytes of a block's keys and values of the positions before one."""
        return position // PAGE * self._layer_bytes

    def weights(self, block: int) -> list[Array]:
        """The integers of a block's matrices, in the order of ``ADAPTABLE``."""
        return [weight_integers(matrix) for matrix in self._matrices(block)]

    def boundaries(self, state: CachedTokens, blocks: range, position: int, came: Floats) -> list[Floats]:
        """The rows that each of some blocks gives, one after another, of a window again.

        Args:
            blocks: which, in a row; of none nothing comes.
            came: what the first of them was given.
            position: of the window's first row: a whole number of pages.

        Raises:
            NotAllowed: the session is not that long, or has ended.
        """
        table = self._window(state, position, len(came))
        sequences = (SequenceStruct * 1)(_sequence(table, position, len(came)))
        hidden, found = came.copy(), list[Floats]()
        for block in blocks:
            layer = block - self.span.start
            self._team.run_span(self._struct, range(layer, layer + 1), sequences, hidden)
            found.append(hidden.copy())
        return found

    def trace(self, state: CachedTokens, block: int, position: int, came: Floats) -> TracedBlock:
        """One block's forward of a window again. As :meth:`boundaries`.

        Args:
            came: what the block was given.
        """
        table = self._window(state, position, len(came))
        sequence = _sequence(table, position, len(came))
        pages = state.pages.numbers[: position // PAGE]
        begins = (block - self.span.start) * self._layer_bytes
        part = slice(begins, begins + self._layer_bytes)
        arena = self.pool.arena.reshape(-1, self.pool.page_bytes)
        past = b"".join(arena[page, part].tobytes() for page in pages)
        inputs, sums = self._empty(block, len(came))
        return self._run(block, sequence, came, inputs, sums, past)

    def replay(
        self, block: int, position: int, came: Floats, past: bytes, sums: Sequence[Array]
    ) -> TracedBlock:
        """One block's forward with the sums that somebody says its products give, over what it says of the
        positions before. No weight of a product is read.

        Raises:
            RemoteProtocolError: keys or values are no numbers, or another number than there are.
        """
        before = position // PAGE
        pool = self.pool
        if len(past) != before * self._layer_bytes or self._struct.n_layers != 1:
            raise RemoteProtocolError(f"{len(past)} bytes of keys and values of {position} positions")
        pages = pool.promise(position + len(came))
        pages.resize(position + len(came))
        try:
            arena = pool.arena.reshape(-1, pool.page_bytes)
            shown = np.frombuffer(past, np.uint8).reshape(before, self._layer_bytes)
            arena[list(pages.numbers[:before])] = shown
            inputs, _ = self._empty(block, len(came))
            sequence = _sequence(pages.numbers, position, len(came))
            return self._run(block, sequence, came, inputs, tuple(sums), past, given=True)
        finally:
            pages.resize(0)
            pool.forget(pages)

    def _window(self, state: CachedTokens, position: int, rows: int) -> array[int]:
        """The session's pages before a window, and this one's own for it. To be held while a forward runs.

        Raises:
            NotAllowed: the session is not that long, or has ended.
            LocalProtocolError: there are too few of its own.
        """
        end, before = position + rows, position // PAGE
        if position % PAGE or end > min(state.length, PAGE * len(state.pages.numbers)):
            raise NotAllowed(f"this session has not computed positions {position} to {end}, or has ended")
        if self._own is None or rows > PAGE * len(self._own.numbers):
            raise LocalProtocolError(f"a window of {rows} rows is run again without pages of its own")
        return state.pages.numbers[:before] + self._own.numbers

    @property
    def _layer_bytes(self) -> int:
        return self.pool.page_bytes // self._struct.n_layers

    def _matrices(self, block: int) -> list[Matrix]:
        layer = self._layers[block - self.span.start]
        return [layer.matrices[name] for name in ADAPTABLE]

    def _empty(self, block: int, rows: int) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        matrices = self._matrices(block)
        inputs = tuple(np.empty((rows, matrix.cols), np.int16) for matrix in matrices)
        return inputs, tuple(np.empty((rows, matrix.rows), np.int32) for matrix in matrices)

    def _run(
        self,
        block: int,
        sequence: SequenceStruct,
        came: Floats,
        inputs: tuple[Array, ...],
        sums: tuple[Array, ...],
        past: bytes,
        *,
        given: bool = False,
    ) -> TracedBlock:
        tape = TapeStruct(given=given)
        for number, (x, y) in enumerate(zip(inputs, sums, strict=True)):
            tape.inputs[number], tape.sums[number] = address(x), address(y)
        hidden = np.array(came, np.float32, order="C")
        self._team.run_taped(self._struct, block - self.span.start, sequence, hidden, tape)
        return TracedBlock(came, hidden, inputs, sums, past)


def _sequence(table: array[int], position: int, rows: int) -> SequenceStruct:
    """A window of a session whose pages these are."""
    sequence = SequenceStruct(row=0, rows=rows, position=position, adapter=0)
    sequence.pages, _ = table.buffer_info()
    return sequence
