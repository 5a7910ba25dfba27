"""The blocks of a model of Llama's shape in a checkpoint: what their tensors are called, read and packed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from shoal.executor.arrays import Floats
from shoal.executor.kernels.c_kernels import Matrix
from shoal.executor.kernels.heap import release_heap
from shoal.executor.shape import LlamaShape
from shoal.executor.weights.tensors import Tensors
from shoal.executor.weights.weight_cache import WeightCache
from shoal.models.checkpoint.checkpoint import Checkpoint
from shoal.models.checkpoint.published import GATE_UP, QKV
from shoal.types import Format, Span


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


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The weights of one block, by what the kernels call them."""

    matrices: Mapping[str, Matrix]
    vectors: Mapping[str, Floats]

    @property
    def bytes(self) -> int:
        """What they take in memory."""
        return sum(m.bytes for m in self.matrices.values()) + sum(v.nbytes for v in self.vectors.values())


def read_layers(
    checkpoint: Checkpoint, shape: LlamaShape, span: Span, format: Format, weight_cache: WeightCache
) -> Iterator[LayerWeights]:
    """Read and pack the blocks of ``span``, one matrix at a time, and each when it is asked for.

    Raises:
        BadWeights: a tensor is missing or has another shape.
    """
    tensors = Tensors(checkpoint)
    for block in range(span.start, span.end):
        matrices = weight_cache.fetch(
            str(block), lambda block=block: _matrices(tensors, shape, prefix_of(block), format)
        )
        yield LayerWeights(matrices, _vectors(tensors, shape, prefix_of(block)))
        release_heap()


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
