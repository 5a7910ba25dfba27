"""Small checkpoints quantised as they are published, each with what it means in float32.

compressed-tensors writes its own. The writers of the other schemes need a GPU, or another torch than ours:
what they write is packed here as their sources do it, which each function names.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import NaiveQuantizationCompressor, PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, QuantizationStrategy
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file

from shoal.testing.checkpoints import write_checkpoint

Tensor = torch.Tensor
Stored = dict[str, Tensor]
"""The tensors that stand for a module's weight, by what follows the module's name."""
Write = Callable[[Tensor], tuple[Stored, Tensor]]
"""From a weight ``[rows, cols]`` to its tensors, and what they mean."""


@dataclass(frozen=True)
class Published:
    """A scheme, how it is written and what the config says."""

    write: Write
    config: dict[str, Any]
    takes: Callable[[str], bool] = field(default=lambda name: ".layers." in name or ".h." in name)
    turned: bool = False
    """Whether weights are experts' ``[experts, cols, rows]``."""


def gptq(
    bits: int = 4, group: int = 32, *, act: bool = False, sym: bool = True, v2: bool = False
) -> Published:
    """GPTQModel 7.7's ``BaseQuantLinear.pack_original`` and ``convert_gptq_v2_to_v1_format_module``."""
    options = {"bits": bits, "group_size": group, "desc_act": act, "sym": sym}
    kind = "gptq_v2" if v2 else "gptq"

    def write(weight: Tensor) -> tuple[Stored, Tensor]:
        cols = weight.shape[1]
        size = cols if group == -1 else group
        order = torch.arange(cols) // size
        if act:
            order = order[torch.randperm(cols, generator=torch.Generator().manual_seed(cols))]
        scales, zeros = _affine(weight, order, bits, sym)
        codes = (weight / scales[:, order] + zeros[:, order]).round().clamp(0, 2**bits - 1).long()
        meant = (codes - zeros[:, order]) * scales[:, order]
        words = _pack(codes.T, bits, axis=0)
        kept = _pack(zeros.T.long(), bits, axis=1)
        if not v2:
            ones = sum(1 << at for at in range(0, 32, bits)) if 32 % bits == 0 else 0
            kept = kept - ones if ones else _pack(zeros.T.long() - 1 & 7, bits, axis=1)
        return {
            "qweight": _int32(words),
            "qzeros": _int32(kept),
            "scales": scales.T.half().contiguous(),
            "g_idx": order.int(),
        }, meant

    return Published(write, {"quant_method": "gptq", "checkpoint_format": kind} | options)


def awq(group: int = 32) -> Published:
    """AutoAWQ 0.2.9's ``WQLinear_GEMM.from_linear``."""

    def write(weight: Tensor) -> tuple[Stored, Tensor]:
        rows, cols = weight.shape
        order = torch.arange(cols) // (cols if group == -1 else group)
        scales, zeros = _affine(weight, order, 4, False)
        codes = (weight / scales[:, order] + zeros[:, order]).round().clamp(0, 15).long()

        def packed(values: Tensor) -> Tensor:
            words = torch.zeros(values.shape[0], rows // 8, dtype=torch.int64)
            for col in range(rows // 8):
                for i, at in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                    words[:, col] |= values[:, col * 8 + at] << (4 * i)
            return _int32(words)

        stored = {"qweight": packed(codes.T), "qzeros": packed(zeros.T.long()), "scales": scales.T.half()}
        return stored, (codes - zeros[:, order]) * scales[:, order]

    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    return Published(write, config)


def compressed(format: str, **arguments: Any) -> Published:
    """compressed-tensors' own compressors; ``arguments`` are those of its ``QuantizationArgs``."""
    weights = QuantizationArgs(**arguments)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    compressor = PackedQuantizationCompressor if format == "pack-quantized" else NaiveQuantizationCompressor

    def write(weight: Tensor) -> tuple[Stored, Tensor]:
        rows, cols = weight.shape
        down, across = {
            "tensor": (rows, cols),
            "channel": (1, cols),
            "group": (1, weights.group_size or cols),
            "block": tuple(weights.block_structure or (0, 0)),
        }[QuantizationStrategy(weights.strategy).value]
        blocks = weight.reshape(rows // down, down, cols // across, across).permute(0, 2, 1, 3).flatten(2)
        scale, zero = calculate_qparams(blocks.amin(2), blocks.amax(2), weights)
        if weights.strategy == "tensor":
            scale, zero = scale.flatten(), zero.flatten()
        state = {"weight": weight, "weight_scale": scale.bfloat16().float(), "weight_zero_point": zero}
        stored = compressor.compress(state, scheme)
        meant = compressor.decompress(stored, scheme)["weight"].float()
        return stored | {"weight_scale": stored["weight_scale"].bfloat16()}, meant

    group = {"targets": ["Linear"], "weights": json.loads(weights.model_dump_json())}
    config = {"quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": group}}
    return Published(write, config | {"ignore": ["lm_head"], "quantization_status": "compressed"})


def fp8(block: tuple[int, int] | None = (128, 128), scale: torch.dtype = torch.float32) -> Published:
    """transformers' ``finegrained_fp8.py::Fp8Quantize``; blocks at the edges may be parts, as DeepSeek's."""

    def write(weight: Tensor) -> tuple[Stored, Tensor]:
        rows, cols = weight.shape
        down, across = block or (rows, cols)
        scales = torch.empty(-(-rows // down), -(-cols // across))
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                part = weight[i * down : (i + 1) * down, j * across : (j + 1) * across]
                scales[i, j] = part.abs().max() / 448
        scales = scales.log2().ceil().exp2() if scale == torch.uint8 else scales.to(scale).float()
        wide = scales.repeat_interleave(down, 0)[:rows].repeat_interleave(across, 1)[:, :cols]
        codes = (weight / wide).to(torch.float8_e4m3fn)
        kept = (scales.log2() + 127).to(torch.uint8) if scale == torch.uint8 else scales.to(scale)
        stored = {"weight": codes, "weight_scale_inv": kept if block else kept.reshape(())}
        return stored, codes.float() * wide

    size = None if block is None else list(block)
    return Published(
        write, {"quant_method": "fp8", "weight_block_size": size, "activation_scheme": "dynamic"}
    )


def fbgemm() -> Published:
    """transformers' ``integrations/fbgemm_fp8.py``: a scale for each row."""

    def write(weight: Tensor) -> tuple[Stored, Tensor]:
        scales = weight.abs().amax(1, keepdim=True) / 448
        codes = (weight / scales).to(torch.float8_e4m3fn)
        return {"weight": codes, "weight_scale": scales}, codes.float() * scales

    return Published(write, {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0})


def mxfp4() -> Published:
    """OpenAI's gpt-oss: the layout of transformers' ``convert_moe_packed_tensors``, of experts alone."""
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])

    def write(weight: Tensor) -> tuple[Stored, Tensor]:
        turned = weight.transpose(1, 2)
        groups = turned.unflatten(2, (-1, 32))
        exponents = groups.abs().amax(3).log2().floor() - 2
        scaled = groups / exponents.exp2()[..., None]
        codes = (scaled[..., None] - table).abs().argmin(-1).to(torch.uint8)
        meant = (table[codes.long()] * exponents.exp2()[..., None]).flatten(2).transpose(1, 2)
        blocks = codes[..., 0::2] | codes[..., 1::2] << 4
        return {"_blocks": blocks, "_scales": (exponents + 127).to(torch.uint8)}, meant

    def experts(name: str) -> bool:
        return name.endswith(("experts.gate_up_proj", "experts.down_proj"))

    config = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    return Published(write, config, experts, turned=True)


def bitsandbytes8() -> Published:
    """bitsandbytes 0.50's ``Linear8bitLt``: rows scaled by their largest weight."""

    def write(weight: Tensor) -> tuple[Stored, Tensor]:
        largest = weight.abs().amax(1)
        codes = (weight * (127 / largest[:, None])).round().to(torch.int8)
        stored = {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
        return stored, codes.float() * (largest / 127)[:, None]

    return Published(write, {"quant_method": "bitsandbytes", "load_in_8bit": True})


NF4 = (
    "-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 "
    "-0.18477343022823334 -0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 "
    "0.24611230194568634 0.33791524171829224 0.44070982933044434 0.5626170039176941 0.7229568362236023 1.0"
)
FP4 = (
    "0 0.005208333333 0.66666667 1.0 0.33333333 0.5 0.16666667 0.25 "
    "-0 -0.005208333333 -0.66666667 -1.0 -0.33333333 -0.5 -0.16666667 -0.25"
)


def bitsandbytes4(kind: str = "nf4", *, block: int = 64, nested: bool = False) -> Published:
    """bitsandbytes 0.50's ``quantize_4bit`` and ``QuantState.as_dict(packed=True)``."""
    table = torch.tensor([float(value) for value in (NF4 if kind == "nf4" else FP4).split()])

    def write(weight: Tensor) -> tuple[Stored, Tensor]:
        flat = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % block)).view(-1, block)
        scales = flat.abs().amax(1)
        state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16"}
        state["shape"] = list(weight.shape)
        extra: Stored = {"weight.absmax": scales}
        if nested:
            offset, inner = scales.mean(), torch.linspace(-1, 1, 256)
            rest = torch.nn.functional.pad(scales - offset, (0, -len(scales) % 256)).view(-1, 256)
            outer = rest.abs().amax(1)
            places = ((rest / outer[:, None])[..., None] - inner).abs().argmin(-1).to(torch.uint8)
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset.item()}
            scales = ((inner[places.long()] * outer[:, None]).flatten() + offset)[: len(scales)]
            extra = {
                "weight.absmax": places.flatten()[: len(scales)],
                "weight.nested_absmax": outer,
                "weight.nested_quant_map": inner,
            }
        codes = ((flat / scales[:, None])[..., None] - table).abs().argmin(-1).to(torch.uint8)
        meant = (table[codes.long()] * scales[:, None]).flatten()[: weight.numel()].view(weight.shape)
        used = torch.nn.functional.pad(codes.flatten()[: weight.numel()], (0, weight.numel() % 2))
        text = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)
        stored = {"weight": (used[0::2] << 4 | used[1::2])[:, None], "weight.quant_map": table} | extra
        return stored | {f"weight.quant_state.bitsandbytes__{kind}": text}, meant

    return Published(
        write, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    )


PUBLISHED: dict[str, Published] = {
    "gptq4": gptq(),
    "gptq4-act": gptq(act=True, sym=False),
    "gptq4-rows-v2": gptq(group=-1, sym=False, v2=True),
    "gptq8": gptq(8, 64),
    "gptq8-act-v2": gptq(8, 32, act=True, v2=True),
    "gptq3": gptq(3, 32, sym=False),
    "gptq2": gptq(2, 32, sym=False),
    "awq": awq(),
    "awq-rows": awq(-1),
    "w4a16": compressed("pack-quantized", num_bits=4, group_size=32),
    "w4a16-zeros": compressed("pack-quantized", num_bits=4, group_size=32, symmetric=False),
    "w8a16": compressed("pack-quantized", num_bits=8, strategy="channel"),
    "w8a16-zeros": compressed("pack-quantized", num_bits=8, group_size=64, symmetric=False),
    "w3a16": compressed("pack-quantized", num_bits=3, group_size=32),
    "w8a8": compressed("int-quantized", num_bits=8, strategy="channel"),
    "w8a8-zero": compressed("int-quantized", num_bits=8, strategy="tensor", symmetric=False),
    "fp8-tensor": compressed("float-quantized", num_bits=8, type="float", strategy="tensor"),
    "fp8-channel": compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
    "fp8-block": compressed(
        "float-quantized", num_bits=8, type="float", strategy="block", block_structure=[32, 16]
    ),
    "fp8": fp8(),
    "fp8-small": fp8((32, 16), torch.bfloat16),
    "fp8-exponents": fp8((32, 32), torch.uint8),
    "fp8-one": fp8(None),
    "fbgemm": fbgemm(),
    "bnb8": bitsandbytes8(),
    "nf4": bitsandbytes4(),
    "nf4-nested": bitsandbytes4(nested=True),
    "nf4-long": bitsandbytes4(block=4096),
    "fp4": bitsandbytes4("fp4"),
}
"""What is published, by a short name; gpt-oss's MXFP4 is of another shape."""


def publish(folder: Path, scheme: Published, family: str = "llama", **changes: Any) -> tuple[Path, Path]:
    """Write a small checkpoint as it is published, and beside it the plain one of what it means.

    Returns:
        Both folders.
    """
    plain = write_checkpoint(folder / "plain", family, **changes)
    tensors = load_file(plain / "model.safetensors")
    stored: Stored = {}
    conv1d = family == "gpt2"  # its linear layers are [cols, rows], and quantisers turn them
    for name, tensor in tensors.items():
        matrix = tensor.ndim == (3 if scheme.turned else 2)
        if not scheme.takes(name) or not matrix or ".mlp.gate.weight" in name:
            stored[name] = tensor
            continue
        written, meant = scheme.write(tensor.T.contiguous() if conv1d else tensor)
        prefix = name if scheme.turned else name.removesuffix("weight")
        stored |= {prefix + suffix: value.clone().contiguous() for suffix, value in written.items()}
        tensors[name] = (meant.T if conv1d else meant).contiguous()
    save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
    published = folder / "published"
    shutil.copytree(plain, published)
    save_file(stored, published / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((plain / "config.json").read_text()) | {"quantization_config": scheme.config}
    (published / "config.json").write_text(json.dumps(config))
    return published, plain


def _affine(weight: Tensor, order: Tensor, bits: int, sym: bool) -> tuple[Tensor, Tensor]:
    """Scales of float16 and whole zeros of each group of each row, ``[rows, groups]``."""
    scales, zeros = [], []
    for group in range(int(order.max()) + 1):
        part = weight[:, order == group]
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        if sym:
            high = torch.maximum(-low, high)
            low = -high
        scale = ((high - low) / (2**bits - 1)).half().float()
        zero = torch.full_like(scale, 2 ** (bits - 1)) if sym else (-low / scale).round()
        scales.append(scale)
        zeros.append(zero.clamp(0, 2**bits - 1))
    return torch.stack(scales, 1), torch.stack(zeros, 1)


def _pack(values: Tensor, bits: int, axis: int) -> Tensor:
    """Integers one after another in words of 32 bits, the first at the lowest bits."""
    values = values.movedim(axis, 0)
    words = torch.zeros(-(-len(values) * bits // 32), values.shape[1], dtype=torch.int64)
    for i, value in enumerate(values):
        word, shift = divmod(i * bits, 32)
        words[word] |= value << shift & 0xFFFFFFFF
        if shift + bits > 32:
            words[word + 1] |= value >> 32 - shift
    return words.movedim(0, axis)


def _int32(words: Tensor) -> Tensor:
    """The same 32 bits, with a sign."""
    return ((words + 2**31) % 2**32 - 2**31).int().contiguous()
