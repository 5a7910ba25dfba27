"""Spans of Llama's shape: a forward is one call into the kernels, without Python between the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref

import numpy as np

from shoal.errors import LocalProtocolError, OutOfResources, ShoalError
from shoal.executor.adapters.parts import FusedAdapters
from shoal.executor.arrays import Array, address, join, split
from shoal.executor.batcher import ForwardOutput
from shoal.executor.kernels.c_kernels import NUMBER, MatrixLayout, ThreadTeam, library
from shoal.executor.kernels.decode_steps import DecodeSteps
from shoal.executor.kernels.structs import KvStruct, LayerStruct, LinearStruct, SequenceStruct, SpanStruct
from shoal.executor.pages import PAGE, PagePool, pages_for
from shoal.executor.proofs.tracer import BlockTracer
from shoal.executor.runner import Capabilities, PagedRunner, SessionRows
from shoal.executor.shape import LlamaShape
from shoal.executor.weights.llama_blocks import LayerWeights
from shoal.models.adapters.adapter import Adapter
from shoal.types import Exactness, Kv, Span

KV_FORMAT: dict[Kv, MatrixLayout] = {"auto": "bf16", "int8": "int8"}


class FusedRunner(PagedRunner):
    """Blocks ``[start, end)`` of a model of Llama's shape, and the KV of every session in them."""

    capabilities = Capabilities(batch=True, roll_back=True, exact=False)

    def __init__(
        self,
        shape: LlamaShape,
        span: Span,
        layers: Sequence[LayerWeights],
        team: ThreadTeam,
        kv: Kv,
    ) -> None:
        super().__init__(shape.family, shape.sections)
        self._shape = shape
        self._adapters = FusedAdapters()
        self.span = span
        self.width = shape.hidden
        layouts = {matrix.layout for weights in layers for matrix in weights.matrices.values()}
        # Products with float weights add up in another order where more than 8 rows run together.
        self.bits: Exactness = "batch" if layouts & {"fp32", "bf16"} else "rows"
        self._team = team
        self._held = layers  # the kernels read these by address
        self._ropes, self._axes = shape.ropes, shape.axes
        self.tensor_bytes = sum(weights.bytes for weights in layers)
        structs = [_layer(weights, shape, block) for block, weights in enumerate(layers, span.start)]
        self._layers = (LayerStruct * len(structs))(*structs)
        self._struct = SpanStruct(
            hidden=shape.hidden,
            ffn=shape.ffn,
            rotary=shape.rotary,
            activation=shape.activation,
            epsilon=shape.epsilon,
            residual=shape.residual,
            n_layers=len(structs),
            layers=self._layers,
            axes=address(self._axes),
            kv=KvStruct(shape.heads, shape.kv_heads, shape.head_dim, NUMBER[KV_FORMAT[kv]], shape.scale),
        )
        for number, rope in enumerate(shape.ropes):
            self._struct.frequencies[number] = address(rope.frequencies)
            self._struct.rope_scale[number] = rope.scale
        native = library()
        if native is None:
            raise OutOfResources("the C kernels are not built")
        self.page_bytes = int(native.kv_layer_bytes(byref(self._struct.kv))) * len(structs)
        """Bytes of one page: 16 tokens in every block of the span."""
        self.kv_bytes = self.page_bytes / PAGE
        self.pool: PagePool | None = None
        """Where KV lies, once :meth:`make_pool` has made it."""

    def load_adapters(self, adapters: Sequence[Adapter]) -> None:
        self._adapters = FusedAdapters.of(adapters, self._shape, self.span)
        self.numbers.take(adapters)
        self.tensor_bytes += self._adapters.bytes
        self._struct.adapters = address(self._adapters.table)

    def make_pool(self, tokens: int) -> PagePool:
        """Memory for at least ``tokens`` tokens of KV; only what is ever used is taken from the system."""
        self.pool = PagePool(pages_for(tokens), self.page_bytes)
        self._struct.kv.arena = address(self.pool.arena)
        self._struct.kv.page_bytes = self.pool.page_bytes
        return self.pool

    def decode_steps(self) -> DecodeSteps | None:
        return None if self.pool is None else DecodeSteps(self._team, self._struct, self.width, self)

    def tracer(self) -> BlockTracer:
        if self.pool is None:
            raise LocalProtocolError("a block is traced before there is a pool")
        return BlockTracer(self._team, self._struct, self.span, self._held, self.pool)

    def _run(self, span: Span, batch: Sequence[SessionRows]) -> list[ForwardOutput]:
        hidden = np.ascontiguousarray(join([rows.hidden for rows in batch]))  # in place where it can be
        sequences = (SequenceStruct * len(batch))()
        lengths = [len(rows.hidden) for rows in batch]
        held: list[Array] = []  # the kernels read these by address
        at = 0
        for sequence, rows, n in zip(sequences, batch, lengths, strict=True):
            sequence.row, sequence.rows, sequence.position = at, n, rows.position
            sequence.adapter = rows.state.adapter
            sequence.pages, _ = rows.state.pages.numbers.buffer_info()
            if rows.mutual:
                ends = rows.seen_ends()
                held.append(ends)
                sequence.ends = address(ends)
            if rows.grids:
                positions = rows.rotary_positions()
                held.append(positions)
                sequence.rotary_positions = address(positions)
            at += n
        layers = range(span.start - self.span.start, span.end - self.span.start)
        try:
            self._team.run_span(self._struct, layers, sequences, hidden)
        except ShoalError as error:
            return [error] * len(batch)
        for rows, n in zip(batch, lengths, strict=True):
            rows.state.length = rows.position + n
        return [*split(hidden, lengths)]


def _layer(weights: LayerWeights, shape: LlamaShape, block: int) -> LayerStruct:
    linears: dict[str, LinearStruct] = {name: matrix.struct() for name, matrix in weights.matrices.items()}
    addresses = {name: address(vector) for name, vector in weights.vectors.items()}
    return LayerStruct(**linears, **addresses, window=shape.windows[block], rope=shape.rope_of[block])
