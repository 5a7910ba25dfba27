"""A span of the model's own modules, with its linear layers in a format of ours: for every family of models.

Transformers' loader does the work, through its door for quantisers: it then reads one tensor at a time, gives
each weight of a linear layer to us, and keeps no float32 copy. What is no linear layer stays float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from shoal.errors import StepFailed
from shoal.executor.device.products import DeviceMatrix, Products, place_matrix, weights_of
from shoal.executor.kernels.c_kernels import Matrix, ThreadTeam
from shoal.executor.kernels.heap import release_heap
from shoal.executor.kernels.torch_kernels import apply, array_of, pack_tensor, widen
from shoal.models.build.load import load_span_module
from shoal.models.build.seq2seq.spans import JoinedSpan
from shoal.models.build.span import SpanModule
from shoal.models.checkpoint.encoder_decoders import KEPT_FLOAT
from shoal.models.seam.config import PretrainedConfig
from shoal.models.seam.experts import EXPERT_WEIGHTS, are_experts, choose_experts, register_experts
from shoal.models.seam.layers import is_linear, is_turned
from shoal.models.seam.loading import QuantizationConfigMixin, mark_filled, ties
from shoal.models.seam.model import PreTrainedModel
from shoal.models.seam.quantizer import (
    ConversionOps,
    HfQuantizer,
    register_quantization_config,
    register_quantizer,
)
from shoal.models.store.local_model import LocalModel
from shoal.types import Format, Kv, Span

METHOD = "shoal"
SMALL = 32
"""A linear layer with fewer rows or columns stays float32: routers and gates, whose errors decide much."""
KEPT = ("router", "gate", "dt_proj")
"""Names of linear layers that stay float32: routers, and Mamba's, whose weights its own code reads."""


class PackedLinear(nn.Module):
    """A linear layer, ``[..., cols]`` to ``[..., rows]``, whose weights are packed as they are loaded."""

    def __init__(self, linear: nn.Module, packing: Packing) -> None:
        super().__init__()
        self.weight = cast(nn.Parameter, linear.weight)
        """A place for the loader, on the meta device; once packed, a float32 copy at each look."""
        self.bias = cast("nn.Parameter | None", linear.bias)
        self.matrix: Matrix | None = None
        self.placed: DeviceMatrix | None = None
        """The weights instead, where they lie on a device; the bias stays a parameter."""
        self._packing = packing
        self._turned = is_turned(linear)  # its weights are [cols, rows]

    @property
    def sizes(self) -> tuple[int, int]:
        """Outputs and inputs, once it is packed."""
        held = self.matrix or self.placed
        if held is None:
            raise StepFailed("a linear layer without weights")
        return held.rows, held.cols

    @property
    def packed_bytes(self) -> int:
        """Bytes of the weights in memory, beside those of its parameters."""
        if self.placed is not None:
            return self.placed.bytes
        return 0 if self.matrix is None else replace(self.matrix, bias=None).bytes

    def pack(self, weight: torch.Tensor) -> None:
        """Take the weights, as the checkpoint has them.

        Raises:
            ValueError: they are of another shape.
        """
        if weight.shape != self.weight.shape:
            raise ValueError(f"weights of shape {tuple(weight.shape)}, not {tuple(self.weight.shape)}")
        matrix = pack_tensor(weight.detach().T if self._turned else weight.detach(), self._packing.format)
        if self._packing.place is None:
            self.matrix = matrix
        else:
            self.placed = self._packing.place(matrix)
        # From here on, __getattr__ below gives it.
        del self._parameters["weight"]

    def settle(self) -> None:
        """All is loaded: the bias too, and perhaps the weights, together with others of their tensor."""
        if self.matrix is None and self.placed is None and not self.weight.is_meta:
            self.pack(self.weight)
        if self.matrix is not None and self.bias is not None:
            self.matrix = replace(self.matrix, bias=array_of(self.bias.detach()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.placed is not None:
            found = self.placed.multiply(x.reshape(-1, x.shape[-1]).float()).float()
            found = found if self.bias is None else found + self.bias
            return found.view(*x.shape[:-1], self.placed.rows)
        if self.matrix is None:
            raise StepFailed("a linear layer without weights")
        out = apply(self._packing.team, self.matrix, x.reshape(-1, x.shape[-1]).float())
        return out.view(*x.shape[:-1], self.matrix.rows)

    def __getattr__(self, name: str) -> Any:
        matrix: Matrix | None = self.__dict__.get("matrix")
        placed: DeviceMatrix | None = self.__dict__.get("placed")
        if name == "weight" and placed is not None:
            wide = weights_of(placed)
        elif name == "weight" and matrix is not None:
            wide = widen(matrix, slice(None))
        else:
            return super().__getattr__(name)
        return wide.T if self._turned else wide

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLinear:
        return self  # parts of a span share its weights


class PackedExperts(nn.Module):
    """One weight of a sparse layer's experts, float32 ``[n, cols]`` to ``[n, rows]`` for each expert."""

    def __init__(self, weights: torch.Tensor, packing: Packing, turned: bool) -> None:
        """``weights`` are ``[experts, rows, cols]``, or ``[experts, cols, rows]`` if ``turned``."""
        super().__init__()
        matrices = [pack_tensor(w.T if turned else w, packing.format) for w in weights.detach()]
        self.matrices: list[Matrix] = matrices if packing.place is None else []
        self.placed = [] if packing.place is None else [packing.place(matrix) for matrix in matrices]
        """The same where they lie on a device."""
        self._packing = packing

    @property
    def packed_bytes(self) -> int:
        """Bytes of all experts' weights in memory."""
        return sum(matrix.bytes for matrix in (*self.matrices, *self.placed))

    def forward(self, x: torch.Tensor, expert: int, biases: torch.Tensor | None) -> torch.Tensor:
        if self.placed:
            out = self.placed[expert].multiply(x).float()
        else:
            out = apply(self._packing.team, self.matrices[expert], x)
        return out if biases is None else out + biases[expert]

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedExperts:
        return self


def run_experts(
    experts: Any, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """A sparse layer's experts, one after another, each on the tokens that chose it.

    A token's result does not depend on the tokens beside it, in a format of which that is so.

    Args:
        experts: the model's own module, whose weights are :class:`PackedExperts`.
        hidden: ``[n, width]``.
        top_k_index: which experts each token chose, ``[n, k]``.
        top_k_weights: how much each counts, ``[n, k]``.
    """
    first = "gate_up_proj" if experts.has_gate else "up_proj"
    first_bias, last_bias = (
        (getattr(experts, f"{first}_bias"), experts.down_proj_bias) if experts.has_bias else (None, None)
    )
    out = torch.zeros_like(hidden)
    for expert in top_k_index.unique().tolist():
        tokens, places = torch.where(top_k_index == expert)
        x = getattr(experts, first)(hidden[tokens], expert, first_bias)
        x = experts._apply_gate(x) if experts.has_gate else experts.act_fn(x)
        x = experts.down_proj(x, expert, last_bias)
        if experts.has_post_expert_norm:
            x = experts.post_expert_norm(x)
        out.index_add_(0, tokens, x * top_k_weights[tokens, places, None])
    return out


class Packing(QuantizationConfigMixin):
    """What transformers is told: which format, and who computes.

    Args:
        place: brings a matrix to the device that computes; ``None`` where that is the CPU, with ``team``.
    """

    def __init__(
        self,
        format: Format,
        team: ThreadTeam | None,
        place: Callable[[Matrix], DeviceMatrix] | None = None,
    ) -> None:
        self.quant_method = cast(Any, METHOD)
        self.format: Format = format
        self.team = team
        self.place = place

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": METHOD, "format": self.format}

    def __deepcopy__(self, memo: dict[int, Any]) -> Packing:
        return self  # configs are copied; there is one team


class Packer(HfQuantizer):
    """Transformers' door for quantisers: it loads tensor by tensor and lets each weight through here."""

    def __init__(self, quantization_config: Packing, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        if self.pre_quantized:
            raise ValueError(f"no checkpoint is stored in the format {METHOD}")
        self._packing = quantization_config

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: object) -> None:
        tied = ties(model)
        shared = {name.removesuffix(".weight") for name in (*tied.keys(), *tied.values())}
        for path, module in list(model.named_modules()):
            # A tied weight is also read by another module, which knows nothing of our formats.
            if path not in shared and is_packable(path, module):
                owner, _, name = path.rpartition(".")
                setattr(model.get_submodule(owner), name, PackedLinear(module, self._packing))

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **kwargs: object
    ) -> PreTrainedModel:
        for module in model.modules():
            if isinstance(module, PackedLinear):
                module.settle()
        return model

    def update_attn_implementation(self, config: PretrainedConfig) -> PretrainedConfig:
        choose_experts(config, METHOD)
        return config

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: object) -> bool:
        owner, _, name = param_name.rpartition(".")
        return _takes(model.get_submodule(owner), name)

    def get_quantize_ops(self) -> ConversionOps:
        return _Pack(self._packing)

    def is_serializable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return False

    @property
    def is_trainable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return False


class _Pack(ConversionOps):
    """Gives linear layers and experts their weights; what is not for them goes on to the loader."""

    def __init__(self, packing: Packing) -> None:
        self._packing = packing

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        model, missing = cast(PreTrainedModel, kwargs["model"]), cast("set[str]", kwargs["missing_keys"])
        left: dict[str, Any] = {}
        # Emptied on the way: each tensor goes once it is packed, so that only one is ever held twice.
        while input_dict:
            name, value = input_dict.popitem()
            owner, _, last = name.rpartition(".")
            module = model.get_submodule(owner)
            if not _takes(module, last):
                left[name] = value
                continue
            weights = cast(torch.Tensor, value[0] if isinstance(value, list) else value)
            if isinstance(module, PackedLinear):
                module.pack(weights)
            else:
                _pack_experts(module, last, weights, self._packing)
            missing.discard(name)
            del weights, value  # nobody else holds them
            release_heap()
        return left


def _takes(module: nn.Module, name: str) -> bool:
    if isinstance(module, PackedLinear):
        return name == "weight"
    return are_experts(module) and name in EXPERT_WEIGHTS


def _pack_experts(experts: Any, name: str, weights: torch.Tensor, packing: Packing) -> None:
    place = cast(nn.Parameter, getattr(experts, name))
    if weights.shape != place.shape:
        raise ValueError(f"weights of shape {tuple(weights.shape)}, not {tuple(place.shape)}")
    delattr(experts, name)
    setattr(experts, name, PackedExperts(weights, packing, bool(experts.is_transposed)))
    mark_filled(experts)


register_quantization_config(METHOD)(Packing)
register_quantizer(METHOD)(Packer)
register_experts(METHOD, run_experts)


def is_packable(path: str, module: nn.Module) -> bool:
    """Whether a module is a linear layer that loses nothing that matters when it is packed."""
    if not is_linear(module):
        return False
    sizes = cast(nn.Parameter, module.weight).shape
    return min(sizes) >= SMALL and path.rpartition(".")[2] not in KEPT and not path.endswith(KEPT_FLOAT)


def load_packed(
    model: LocalModel,
    span: Span,
    format: Format,
    *,
    team: ThreadTeam | None,
    kv: Kv = "auto",
    device: str = "cpu",
    products: Products | None = None,
) -> SpanModule | JoinedSpan:
    """Build ``span`` of a model with its linear layers in ``format`` and all else in float32.

    On another device than the CPU bf16 is torch's own, for all weights.

    Args:
        team: computes the linear layers; ``None`` where the kernels are not built.
        products: those of ``device``, where torch computes the linear layers there instead.
        kv: how sessions' keys and values are kept.

    Raises:
        UsageError: the span goes beyond the model's blocks.
        BadWeights: tensors are missing, damaged or of another shape.
        UnsupportedModel: the model's blocks cannot be served apart.
    """
    if format == "fp32":
        return load_span_module(model, span, "float32", device, kv_as=kv)
    if device != "cpu" and format == "bf16":
        return load_span_module(model, span, "bfloat16", device, kv_as=kv)
    place = products and partial(place_matrix, device=torch.device(device), products=products)
    return load_span_module(model, span, "float32", device, Packing(format, team, place), kv_as=kv)
