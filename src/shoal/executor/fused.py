"""Spans of Llama's shape: a forward is one call into the kernels, without Python between the blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from ctypes import byref

import numpy as np

from shoal.errors import OutOfResources, ShoalError, UsageError
from shoal.executor.arrays import Floats, address, join, split
from shoal.executor.batcher import ForwardOutput
from shoal.executor.kernels.c_kernels import NUMBER, Matrix, ThreadTeam, library
from shoal.executor.kernels.heap import release_heap
from shoal.executor.kernels.structs import KvStruct, LayerStruct, LinearStruct, SequenceStruct, SpanStruct
from shoal.executor.pages import PAGE, PagePool, Pages, pages_for
from shoal.executor.runner import Capabilities, KvState, SessionRows, gap
from shoal.executor.shape import LlamaShape
from shoal.executor.weights.tensors import Tensors
from shoal.executor.weights.weight_cache import WeightCache
from shoal.models.checkpoint.checkpoint import Checkpoint
from shoal.types import Format, Kv, Span

KV_FORMAT: dict[Kv, Format] = {"auto": "bf16", "int8": "int8"}

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")


def prefix_of(block: int) -> str:
    """What the names of a block's tensors begin with."""
    return f"model.layers.{block}."


def expected_names(shape: LlamaShape, checkpoint: Checkpoint, block: int) -> bool:
    """Whether a block has the tensors of the shape and no others: one more would mean another computation."""
    prefix = prefix_of(block)
    has = {name.removeprefix(prefix) for name in checkpoint.tensors if name.startswith(prefix)}
    linears = ("self_attn.qkv_proj", "mlp.gate_up_proj") if shape.merged else (*QKV, *GATE_UP)
    linears = (*linears, "self_attn.o_proj", "mlp.down_proj")
    norms = ["input_layernorm", "post_attention_layernorm"]
    if shape.post_norms:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    needed = {f"{name}.weight" for name in (*linears, *norms)}
    needed |= {f"{name}.bias" for name in linears if _has_bias(shape, name)}
    if shape.head_norms:
        needed |= {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}
    return needed <= has <= needed | {"self_attn.rotary_emb.inv_freq"}


def _has_bias(shape: LlamaShape, linear: str) -> bool:
    if linear.startswith("mlp."):
        return shape.mlp_bias
    return shape.out_bias if linear == "self_attn.o_proj" else shape.qkv_bias


class FusedRunner:
    """Blocks ``[start, end)`` of a model of Llama's shape, and the KV of every session in them."""

    capabilities = Capabilities(batch=True, roll_back=True, exact=False, backward=False)

    def __init__(
        self,
        shape: LlamaShape,
        span: Span,
        layers: Sequence[tuple[Mapping[str, Matrix], Mapping[str, Floats]]],
        team: ThreadTeam,
        kv: Kv,
    ) -> None:
        self.span = span
        self.width = shape.hidden
        self._team = team
        self._held = layers  # the kernels read these by address
        self._ropes = shape.ropes
        self.tensor_bytes = sum(m.bytes for matrices, _ in layers for m in matrices.values()) + sum(
            v.nbytes for _, vectors in layers for v in vectors.values()
        )
        structs = [
            _layer(matrices, vectors, shape, block)
            for block, (matrices, vectors) in enumerate(layers, span.start)
        ]
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

    def make_pool(self, tokens: int) -> PagePool:
        """Memory for at least ``tokens`` tokens of KV; only what is ever used is taken from the system."""
        self.pool = PagePool(pages_for(tokens), self.page_bytes)
        self._struct.kv.arena = address(self.pool.arena)
        self._struct.kv.page_bytes = self.pool.page_bytes
        return self.pool

    def open(self, span: Span, pages: Pages) -> KvState:
        if span.start < self.span.start or span.end > self.span.end:
            raise UsageError(f"blocks {span} are not inside of {self.span}")
        return KvState(span, pages)

    def forward(self, batch: Sequence[SessionRows]) -> list[ForwardOutput]:
        outcomes = [_make_room(rows) for rows in batch]
        for span in dict.fromkeys(rows.state.span for rows in batch):
            ready = [i for i, rows in enumerate(batch) if outcomes[i] is None and rows.state.span == span]
            if ready:
                done = self._run(span, [batch[i] for i in ready])
                for i, outcome in zip(ready, done, strict=True):
                    outcomes[i] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    def watched(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()  # nobody else computes

    def _run(self, span: Span, batch: Sequence[SessionRows]) -> list[ForwardOutput]:
        hidden = np.ascontiguousarray(join([rows.hidden for rows in batch]))  # in place where it can be
        sequences = (SequenceStruct * len(batch))()
        lengths = [len(rows.hidden) for rows in batch]
        at = 0
        for sequence, rows, n in zip(sequences, batch, lengths, strict=True):
            sequence.row, sequence.rows, sequence.position = at, n, rows.position
            sequence.pages, _ = rows.state.pages.numbers.buffer_info()
            at += n
        layers = range(span.start - self.span.start, span.end - self.span.start)
        try:
            self._team.run_span(self._struct, layers, sequences, hidden)
        except ShoalError as error:
            return [error] * len(batch)
        for rows, n in zip(batch, lengths, strict=True):
            rows.state.length = rows.position + n
        return [*split(hidden, lengths)]


def _make_room(rows: SessionRows) -> ForwardOutput | None:
    """Pages for these rows, and none for what they replace; or why not."""
    if (error := gap(rows.state, rows.position)) is not None:
        return error
    try:
        rows.state.pages.resize(rows.position + len(rows.hidden))
    except ShoalError as error:
        return error
    return None


def load_fused(
    checkpoint: Checkpoint,
    shape: LlamaShape,
    span: Span,
    format: Format,
    *,
    kv: Kv,
    team: ThreadTeam,
    weight_cache: WeightCache,
) -> FusedRunner:
    """Read and pack the blocks of ``span``, one matrix at a time.

    Raises:
        BadWeights: a tensor is missing or has another shape.
    """
    layers: list[tuple[Mapping[str, Matrix], Mapping[str, Floats]]] = []
    tensors = Tensors(checkpoint)
    for block in range(span.start, span.end):
        matrices = weight_cache.fetch(
            str(block), lambda block=block: _matrices(tensors, shape, prefix_of(block), format)
        )
        layers.append((matrices, _vectors(tensors, shape, prefix_of(block))))
        release_heap()
    return FusedRunner(shape, span, layers, team, kv)


def _matrices(tensors: Tensors, shape: LlamaShape, prefix: str, format: Format) -> dict[str, Matrix]:
    attended = shape.heads * shape.head_dim
    qkv = attended + 2 * shape.kv_heads * shape.head_dim
    names = {
        "qkv": ("self_attn.qkv_proj",) if shape.merged else QKV,
        "out": ("self_attn.o_proj",),
        "gate_up": ("mlp.gate_up_proj",) if shape.merged else GATE_UP,
        "down": ("mlp.down_proj",),
    }
    sizes = {
        "qkv": (qkv, shape.hidden),
        "out": (shape.hidden, attended),
        "gate_up": (2 * shape.ffn, shape.hidden),
        "down": (shape.hidden, shape.ffn),
    }
    return {
        key: tensors.matrix([prefix + name for name in of], *sizes[key], format) for key, of in names.items()
    }


def _vectors(tensors: Tensors, shape: LlamaShape, prefix: str) -> dict[str, Floats]:
    names = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    if shape.post_norms:
        names = {
            "attention_norm": "input_layernorm",
            "after_attention": "post_attention_layernorm",
            "mlp_norm": "pre_feedforward_layernorm",
            "after_mlp": "post_feedforward_layernorm",
        }
    found = {
        key: tensors.vector(f"{prefix}{name}.weight", shape.hidden, shape.norm_offset)
        for key, name in names.items()
    }
    if shape.head_norms:
        for key, name in (("query_norm", "self_attn.q_norm"), ("key_norm", "self_attn.k_norm")):
            found[key] = tensors.vector(f"{prefix}{name}.weight", shape.head_dim, shape.norm_offset)
    return found


def _layer(
    matrices: Mapping[str, Matrix], vectors: Mapping[str, Floats], shape: LlamaShape, block: int
) -> LayerStruct:
    linears: dict[str, LinearStruct] = {name: matrix.struct() for name, matrix in matrices.items()}
    addresses = {name: address(vector) for name, vector in vectors.items()}
    return LayerStruct(**linears, **addresses, window=shape.windows[block], rope=shape.rope_of[block])
