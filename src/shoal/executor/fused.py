"""Spans of Llama's shape: a forward is one call into the kernels, without Python between the blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from ctypes import byref
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from shoal.errors import BadWeights, OutOfResources, ShoalError, UsageError
from shoal.executor.batcher import Outcome
from shoal.executor.kernels import (
    NUMBER,
    KvStruct,
    LayerStruct,
    LinearStruct,
    Matrix,
    SequenceStruct,
    SpanStruct,
    Team,
    library,
    pack,
)
from shoal.executor.memory import release
from shoal.executor.pages import PAGE, PagePool, Pages
from shoal.executor.runner import Rows, State, gap
from shoal.executor.shape import LlamaShape
from shoal.executor.shelf import Shelf
from shoal.models.checkpoint import Checkpoint
from shoal.models.headers import TensorEntry
from shoal.models.kv import Kv
from shoal.types import Format, Span

KV_FORMAT: dict[Kv, Format] = {"auto": "bf16", "int8": "int8"}

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")


class Tensors:
    """A checkpoint's tensors, read one at a time."""

    def __init__(self, checkpoint: Checkpoint, stack: ExitStack) -> None:
        self._checkpoint = checkpoint
        self._stack = stack
        self._files: dict[Path, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._checkpoint.tensors

    def entry(self, name: str) -> TensorEntry:
        """Where a tensor lies.

        Raises:
            BadWeights: there is none of that name.
        """
        entry = self._checkpoint.tensors.get(name)
        if entry is None:
            raise BadWeights(
                f"{self._checkpoint.folder}: tensor {name} is missing",
                check="whether the model was fetched completely",
            )
        return entry

    def read(self, name: str) -> torch.Tensor:
        """One tensor as stored. Raises as ``entry``."""
        entry = self.entry(name)
        if entry.file not in self._files:
            opened = safe_open(entry.file, framework="pt", backend="pread")
            self._files[entry.file] = self._stack.enter_context(opened)
        return self._files[entry.file].get_tensor(name)

    def vector(self, name: str, size: int, offset: float = 0.0) -> torch.Tensor:
        """A norm's or a bias's float32 ``[size]``, plus ``offset``. Raises as ``matrix``."""
        found = self.read(name).float() + offset
        if tuple(found.shape) != (size,):
            raise self._wrong(name, found, (size,))
        return found.contiguous()

    def matrix(self, names: Sequence[str], rows: int, cols: int, format: Format) -> Matrix:
        """The weights and biases of linear layers, one below the other, ``[rows, cols]`` in all.

        Raises:
            BadWeights: a tensor is missing or has another shape.
        """
        weights = [self.read(f"{name}.weight") for name in names]
        if any(w.dim() != 2 or w.shape[1] != cols for w in weights) or sum(len(w) for w in weights) != rows:
            raise self._wrong(names[0], weights[0], (rows, cols))
        biases = [self.read(f"{name}.bias") for name in names if f"{name}.bias" in self]
        if biases and sum(len(b) for b in biases) != rows:
            raise self._wrong(f"{names[0]}.bias", biases[0], (rows,))
        joined = weights[0] if len(weights) == 1 else torch.cat(weights)
        return pack(joined, format, torch.cat(biases) if biases else None)

    def _wrong(self, name: str, found: torch.Tensor, wanted: tuple[int, ...]) -> BadWeights:
        return BadWeights(
            f"{self._checkpoint.folder}: tensor {name} is {list(found.shape)} where the config makes it "
            f"part of {list(wanted)}",
            check="whether the config and the weights belong together",
        )


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
    heads = {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}
    allowed = needed | {f"{name}.bias" for name in linears} | heads | {"self_attn.rotary_emb.inv_freq"}
    return needed <= has <= allowed and (not has & heads or heads <= has)


class FusedRunner:
    """Blocks ``[start, end)`` of a model of Llama's shape, and the KV of every session in them."""

    sliced = True

    def __init__(
        self,
        shape: LlamaShape,
        span: Span,
        layers: Sequence[tuple[Mapping[str, Matrix], Mapping[str, torch.Tensor]]],
        team: Team,
        kv: Kv,
    ) -> None:
        self.span = span
        self.width = shape.hidden
        self._team = team
        self._held = layers  # the kernels read these by address
        self._ropes = shape.ropes
        self.tensor_bytes = sum(m.bytes for matrices, _ in layers for m in matrices.values()) + sum(
            v.numel() * 4 for _, vectors in layers for v in vectors.values()
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
            self._struct.frequencies[number] = rope.frequencies.data_ptr()
            self._struct.rope_scale[number] = rope.scale
        native = library()
        if native is None:
            raise OutOfResources("the C kernels are not built")
        self.page_bytes = int(native.kv_layer_bytes(byref(self._struct.kv))) * len(structs)
        """Bytes of one page: 16 tokens in every block of the span."""
        self.kv_bytes = self.page_bytes / PAGE
        self.pool: PagePool | None = None
        """Where KV lies, once :meth:`use` has said so."""

    def use(self, pool: PagePool) -> None:
        """Keep KV in ``pool``, whose pages are of ``page_bytes``."""
        self.pool = pool
        self._struct.kv.arena = pool.arena.data_ptr()
        self._struct.kv.page_bytes = pool.page_bytes

    def open(self, span: Span, pages: Pages) -> State:
        if span.start < self.span.start or span.end > self.span.end:
            raise UsageError(f"blocks {span} are not inside of {self.span}")
        return State(span, pages)

    def forward(self, batch: Sequence[Rows]) -> list[Outcome]:
        outcomes = [_make_room(rows) for rows in batch]
        for span in dict.fromkeys(rows.state.span for rows in batch):
            ready = [i for i, rows in enumerate(batch) if outcomes[i] is None and rows.state.span == span]
            if ready:
                done = self._run(span, [batch[i] for i in ready])
                for i, outcome in zip(ready, done, strict=True):
                    outcomes[i] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    def _run(self, span: Span, batch: Sequence[Rows]) -> list[Outcome]:
        # In place where it can be: each operation of torch's costs a decode step tens of microseconds.
        hidden = batch[0].hidden if len(batch) == 1 else torch.cat([rows.hidden for rows in batch])
        hidden = hidden.contiguous()
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
        return [hidden] if len(batch) == 1 else list(hidden.split(lengths))


def _make_room(rows: Rows) -> Outcome | None:
    """Pages for these rows, and none for what they replace; or why not."""
    if (error := gap(rows.state, rows.position)) is not None:
        return error
    try:
        rows.state.pages.resize(rows.position + len(rows.hidden))
    except ShoalError as error:
        return error
    return None


def load_fused(
    checkpoint: Checkpoint, shape: LlamaShape, span: Span, format: Format, *, kv: Kv, team: Team, shelf: Shelf
) -> FusedRunner:
    """Read and pack the blocks of ``span``, one matrix at a time.

    Raises:
        BadWeights: a tensor is missing or has another shape.
    """
    layers: list[tuple[Mapping[str, Matrix], Mapping[str, torch.Tensor]]] = []
    with ExitStack() as stack:
        tensors = Tensors(checkpoint, stack)
        for block in range(span.start, span.end):
            matrices = shelf.fetch(
                str(block), lambda block=block: _matrices(tensors, shape, prefix_of(block), format)
            )
            layers.append((matrices, _vectors(tensors, shape, prefix_of(block))))
            release()
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


def _vectors(tensors: Tensors, shape: LlamaShape, prefix: str) -> dict[str, torch.Tensor]:
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
    if f"{prefix}self_attn.q_norm.weight" in tensors:
        for key, name in (("query_norm", "self_attn.q_norm"), ("key_norm", "self_attn.k_norm")):
            found[key] = tensors.vector(f"{prefix}{name}.weight", shape.head_dim, shape.norm_offset)
    return found


def _layer(
    matrices: Mapping[str, Matrix], vectors: Mapping[str, torch.Tensor], shape: LlamaShape, block: int
) -> LayerStruct:
    linears: dict[str, LinearStruct] = {name: matrix.struct() for name, matrix in matrices.items()}
    addresses = {name: vector.data_ptr() for name, vector in vectors.items()}
    return LayerStruct(**linears, **addresses, window=shape.windows[block], rope=shape.rope_of[block])
