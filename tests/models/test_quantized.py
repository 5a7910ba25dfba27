"""Checkpoints as they are published quantised: what their tensors mean, exactly, read where they lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from shoal.errors import BadWeights, ModelError, UnsupportedModel
from shoal.models.build.load import load_span_module
from shoal.models.build.loader import read_tensor
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.checkpoint.digest import compute_digest
from shoal.models.checkpoint.floats import map_rows, read_float32
from shoal.models.checkpoint.sizes import block_bytes
from shoal.models.store.store import ModelStore
from shoal.types import Digest, Span

from .conftest import Whole
from .published import PUBLISHED, Published, bitsandbytes8, fp8, gptq, mxfp4, publish
from .test_span_exact import PROMPT, chained

OTHERS: list[tuple[str, Published]] = [
    ("gpt2", gptq()),
    ("gpt2", bitsandbytes8()),
    ("qwen3_moe", gptq()),
    ("deepseek_v3", fp8((32, 32))),
    ("gpt_oss", mxfp4()),
]
"""Families of other shapes: with layers turned, with experts, with the scheme that they are published in."""
LOADED = ("gptq4-act", "awq", "w4a16-zeros", "w8a8", "fp8-block", "fbgemm", "bnb8", "nf4-nested")
"""Schemes, one of each method, of which spans are loaded as well."""
CASES = [
    *(pytest.param("llama", PUBLISHED[name], id=name) for name in LOADED),
    *(
        pytest.param(family, scheme, id=f"{family}-{scheme.config['quant_method']}")
        for family, scheme in OTHERS
    ),
]


def assert_means(published: Path, plain: Path) -> None:
    read, meant = open_checkpoint(published).tensors, open_checkpoint(plain).tensors
    assert read.keys() == meant.keys()
    for name, entry in meant.items():
        if read[name].is_plain:
            continue
        difference = (read_tensor(read[name]) - read_tensor(entry)).abs().max()
        assert difference <= 1e-6 * read_tensor(entry).abs().max(), name


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_tensor_is_read_as_what_it_means(name: str, tmp_path: Path) -> None:
    assert_means(*publish(tmp_path, PUBLISHED[name], num_hidden_layers=1))


@pytest.mark.parametrize(("family", "scheme"), CASES)
def test_three_spans_give_the_logits_of_what_the_tensors_mean(
    family: str, scheme: Published, store: ModelStore, tmp_path: Path
) -> None:
    changes, cuts = ({"num_hidden_layers": 3}, [1, 2]) if family == "llama" else ({}, [1, 4])
    published, plain = publish(tmp_path, scheme, family, **changes)
    assert_means(published, plain)
    pieces = [PROMPT[:11], *([token] for token in PROMPT[:3])]
    found = chained(store.pull(str(published)), cuts, pieces)
    for a, b in zip(found, Whole(plain).logits(pieces), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_matrix_that_stays_in_its_file_gives_the_rows_that_are_asked_for(tmp_path: Path) -> None:
    for name in ("gptq4-act", "awq", "w4a16-zeros", "w8a8", "fp8-block", "nf4-nested"):
        published, _ = publish(tmp_path / name, PUBLISHED[name], num_hidden_layers=1)
        entry = open_checkpoint(published).tensors["model.layers.0.mlp.up_proj.weight"]
        which = np.array([127, 0, 5, 5])
        assert len(map_rows(entry)) == 128
        assert np.array_equal(map_rows(entry)[which], read_float32(entry)[which]), name


def test_odd_sizes_and_blocks_that_end_within_a_row_are_read(tmp_path: Path) -> None:
    """Weights of 3 rows and 35 columns: nothing is a whole number of anything."""
    weight = torch.randn(3, 35, generator=torch.Generator().manual_seed(0))
    for name in ("nf4", "nf4-nested", "fp8-small", "fp8-one", "bnb8", "fbgemm"):
        scheme = PUBLISHED[name]
        folder = tmp_path / name
        folder.mkdir()
        stored, meant = scheme.write(weight)
        save_file(
            {f"a.{suffix}": value.clone() for suffix, value in stored.items()}, folder / "model.safetensors"
        )
        (folder / "config.json").write_text(
            json.dumps({"model_type": "llama", "quantization_config": scheme.config})
        )
        entry = open_checkpoint(folder).tensors["a.weight"]
        assert entry.shape == (3, 35)
        torch.testing.assert_close(read_tensor(entry), meant)
        assert np.array_equal(map_rows(entry)[np.array([2, 0])], read_float32(entry)[[2, 0]])


@pytest.fixture
def gptq_folder(tmp_path: Path) -> Path:
    return publish(tmp_path, PUBLISHED["gptq4"], num_hidden_layers=2)[0]


def digest(folder: Path) -> Digest:
    return compute_digest(open_checkpoint(folder))


def edit(folder: Path, tensors: Callable[[dict[str, torch.Tensor]], object], **settings: Any) -> Path:
    """Change a checkpoint's tensors, and what it says of its quantisation; ``None`` takes a setting out."""
    stored = load_file(folder / "model.safetensors")
    tensors(stored)
    save_file({name: value.contiguous() for name, value in stored.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    said = config["quantization_config"] | settings
    config["quantization_config"] = {name: value for name, value in said.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def nothing(_: object) -> None:
    """Leave the tensors as they are."""


def test_the_digest_covers_codes_scales_and_what_the_config_says_of_them(gptq_folder: Path) -> None:
    first, up = digest(gptq_folder), "model.layers.1.mlp.up_proj."
    seen = {first}
    for part in ("qweight", "scales", "qzeros", "g_idx"):
        edit(gptq_folder, lambda stored, part=part: stored[up + part].view(-1)[:1].add_(1))
        seen.add(digest(gptq_folder))
    edit(gptq_folder, nothing, checkpoint_format="gptq_v2")
    seen.add(digest(gptq_folder))
    assert len(seen) == 6


def test_the_disk_and_memory_that_a_block_takes_are_those_of_its_formats(
    gptq_folder: Path, store: ModelStore
) -> None:
    model = store.pull(str(gptq_folder))
    tensors = load_file(gptq_folder / "model.safetensors")
    assert model.size == sum(tensor.nbytes for tensor in tensors.values())
    assert open_checkpoint(gptq_folder).tensors["model.layers.0.mlp.up_proj.weight"].dtype == "GPTQ4"
    weights = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64 + 2 * 64
    assert block_bytes(model, "fp32") == [4 * weights] * 2
    assert block_bytes(model, "bf16") == [2 * weights] * 2


def test_a_span_reads_its_own_tensors_and_no_others(gptq_folder: Path, store: ModelStore) -> None:
    model = store.pull(str(gptq_folder))
    size = (gptq_folder / "model.safetensors").stat().st_size
    first = min(e.begin for e in open_checkpoint(gptq_folder).stored if "layers.1." in e.name)
    with (gptq_folder / "model.safetensors").open("r+b") as file:
        assert first < size
        file.truncate(size)
        for entry in open_checkpoint(gptq_folder).stored:
            if "layers.1." in entry.name:
                file.seek(entry.begin)
                file.write(b"\xff" * entry.size)  # NaN, and groups that are not there
    load_span_module(model, Span(0, 1))
    with pytest.raises(BadWeights):
        load_span_module(model, Span(1, 2))


def drop(suffix: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda stored: stored.pop("model.layers.0.mlp.up_proj." + suffix)


def put(
    suffix: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[dict[str, torch.Tensor]], object]:
    name = "model.layers.0.mlp.up_proj." + suffix
    return lambda stored: stored.update({name: change(stored[name]).clone()})


def text(**changes: object) -> Callable[[torch.Tensor], torch.Tensor]:
    """A quantisation's state that says something else."""

    def change(state: torch.Tensor) -> torch.Tensor:
        said = json.loads(bytes(state.tolist())) | changes
        return torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)

    return change


NF4_STATE = "weight.quant_state.bitsandbytes__nf4"
BROKEN: dict[str, tuple[str, Callable[..., object], dict[str, Any], type[ModelError], str]] = {
    "a scheme that is not read": ("gptq4", nothing, {"quant_method": "exl3"}, UnsupportedModel, "exl3"),
    "a scheme that is a list": ("gptq4", nothing, {"quant_method": ["gptq"]}, UnsupportedModel, "gptq"),
    "no scheme": ("gptq4", nothing, {"quant_method": None}, UnsupportedModel, "None"),
    "bits that are not read": ("gptq4", nothing, {"bits": 5}, UnsupportedModel, "5 bits"),
    "bits that are none": ("gptq4", nothing, {"bits": "four"}, BadWeights, "bits of its quantization_config"),
    "other kernels' format": ("gptq4", nothing, {"checkpoint_format": "marlin"}, UnsupportedModel, "marlin"),
    "a wrong group size": ("gptq4", nothing, {"group_size": 64}, BadWeights, r"scales.*group_size"),
    "other bits": ("gptq4", nothing, {"bits": 8}, BadWeights, r"scales.*of 32 of 64 columns"),
    "missing scales": ("gptq4", drop("scales"), {}, BadWeights, r"up_proj.scales' is missing"),
    "missing zeros": ("gptq4", drop("qzeros"), {}, BadWeights, r"up_proj.qzeros' is missing"),
    "missing codes": ("gptq4", drop("qweight"), {}, BadWeights, "missing, .*up_proj.weight"),
    "scales of another shape": (
        "gptq4",
        put("scales", lambda t: t[:, :-1]),
        {},
        BadWeights,
        "up_proj.scales",
    ),
    "zeros of another shape": ("gptq4", put("qzeros", lambda t: t[:, :-1]), {}, BadWeights, "up_proj.qzeros"),
    "scales that are integers": ("gptq4", put("scales", lambda t: t.int()), {}, BadWeights, "up_proj.scales"),
    "a group that is not there": ("gptq4", put("g_idx", lambda t: t + 7), {}, BadWeights, "group 8"),
    "a negative group": ("gptq4", put("g_idx", lambda t: t - 1), {}, BadWeights, "group"),
    "an infinite scale": ("gptq4", put("scales", lambda t: t * torch.inf), {}, BadWeights, "NaN or infinite"),
    "scales that overflow": (
        *("fp8", put("weight_scale_inv", lambda t: torch.full_like(t, 3e38)), {}),
        *(BadWeights, "NaN or infinite"),
    ),
    "AWQ for other kernels": ("awq", nothing, {"version": "gemv"}, UnsupportedModel, "gemv"),
    "AWQ in wrong groups": ("awq", nothing, {"group_size": 64}, BadWeights, "group_size"),
    "AWQ in groups that end within": ("awq", nothing, {"group_size": 48}, BadWeights, "group_size"),
    "AWQ without scales": ("awq", drop("scales"), {}, BadWeights, r"up_proj.scales' is missing"),
    "another of compressed-tensors' formats": (
        *("w4a16", nothing, {"format": "marlin-24"}, UnsupportedModel, "marlin-24"),
    ),
    "a sparse checkpoint": (
        *("w4a16", nothing, {"sparsity_config": {"format": "sparse-24-bitmask"}}, UnsupportedModel, "sparse"),
    ),
    "a rotated checkpoint": (
        *("w4a16", nothing, {"transform_config": {"a": 1}}, UnsupportedModel, "transform_config"),
    ),
    "no groups of modules": ("w4a16", nothing, {"config_groups": {}}, BadWeights, "config_groups"),
    "a shape that lies": (
        "w4a16",
        put("weight_shape", lambda t: t * 2),
        {},
        BadWeights,
        "up_proj.weight_packed",
    ),
    "a shape below 0": ("w4a16", put("weight_shape", lambda t: -t), {}, BadWeights, "up_proj.weight_shape"),
    "no shape": ("w4a16", drop("weight_shape"), {}, BadWeights, r"up_proj.weight_shape' is missing"),
    "no zeros where the scheme has some": (
        *("w4a16-zeros", drop("weight_zero_point"), {}, BadWeights, r"weight_zero_point' is missing"),
    ),
    "packed scales of other groups": (
        *("w4a16", put("weight_scale", lambda t: t.repeat(1, 2)), {}, BadWeights, "up_proj.weight_scale"),
    ),
    "integers without scales": ("w8a8", drop("weight_scale"), {}, BadWeights, r"weight_scale' is missing"),
    "floats where integers are said": (
        *(
            "w8a8",
            put("weight", lambda t: t.float().to(torch.float8_e4m3fn)),
            {},
            BadWeights,
            "config_groups",
        ),
    ),
    "FP8 without scales": ("fp8", drop("weight_scale_inv"), {}, BadWeights, r"weight_scale_inv' is missing"),
    "FP8 in wrong blocks": ("fp8-small", nothing, {"weight_block_size": [128, 128]}, BadWeights, "128 x 128"),
    "FP8 in blocks of nothing": (
        *("fp8", nothing, {"weight_block_size": [0, 128]}, BadWeights, "weight_block_size"),
    ),
    "FP8 that is NaN": (
        *("fp8", put("weight", lambda t: (t.float() * torch.nan).to(t.dtype)), {}, BadWeights, "NaN"),
    ),
    "an exponent that is NaN": (
        *("fp8-exponents", put("weight_scale_inv", lambda t: t | 255), {}, BadWeights, "NaN"),
    ),
    "int8 without scales": ("bnb8", drop("SCB"), {}, BadWeights, r"up_proj.SCB' is missing"),
    "int8 in a GPU's order": ("bnb8", put("weight_format", lambda t: t + 1), {}, UnsupportedModel, "tiles"),
    "no table": ("nf4", drop("weight.quant_map"), {}, BadWeights, r"weight.quant_map' is missing"),
    "no state": ("nf4", drop(NF4_STATE), {}, BadWeights, "up_proj.weight"),
    "a state that is no text": ("nf4", put(NF4_STATE, lambda t: t * 0), {}, BadWeights, "not valid JSON"),
    "a state of another shape": (
        *("nf4", put(NF4_STATE, text(shape=[1 << 30, 64])), {}, BadWeights, "up_proj.weight"),
    ),
    "a state of no shape": ("nf4", put(NF4_STATE, text(shape=[-1, 64])), {}, BadWeights, "shape"),
    "a state of other blocks": ("nf4", put(NF4_STATE, text(blocksize=128)), {}, BadWeights, "blocks of 128"),
    "an offset that is infinite": (
        *("nf4-nested", put(NF4_STATE, text(nested_offset=1e999)), {}, BadWeights, "offset"),
    ),
    "a table that is too short": (
        *("nf4", put("weight.quant_map", lambda t: t[:8]), {}, BadWeights, "up_proj.weight.quant_map"),
    ),
}
"""A published checkpoint, what is changed in it, and the error: at once, or when the block is read."""


@pytest.mark.parametrize("what", BROKEN)
def test_what_cannot_be_is_refused_by_name(what: str, store: ModelStore, tmp_path: Path) -> None:
    name, tensors, settings, kind, match = BROKEN[what]
    folder, _ = publish(tmp_path, PUBLISHED[name], num_hidden_layers=1)
    edit(folder, tensors, **settings)
    with pytest.raises(kind, match=match) as caught:
        load_span_module(store.pull(str(folder)), Span(0, 1))
    assert caught.value.check


def test_experts_without_scales_or_of_another_shape_are_refused(store: ModelStore, tmp_path: Path) -> None:
    folder, _ = publish(tmp_path, mxfp4(), "gpt_oss")
    name = "model.layers.0.mlp.experts.down_proj_scales"
    kept = load_file(folder / "model.safetensors")[name]
    edit(folder, lambda stored: stored.update({name: kept[:, :-1]}))
    with pytest.raises(BadWeights, match="down_proj_scales"):
        store.pull(str(folder))
    edit(folder, lambda stored: stored.update({name: torch.full_like(kept, 255)}))
    with pytest.raises(BadWeights, match=r"down_proj_scales.*NaN"):
        store.pull(str(folder))
    edit(folder, lambda stored: stored.pop(name))
    with pytest.raises(BadWeights, match="down_proj_scales' is missing"):
        store.pull(str(folder))


def test_floats_of_eight_bits_without_a_word_on_their_scales_are_refused(
    store: ModelStore, tmp_path: Path
) -> None:
    folder, _ = publish(tmp_path, PUBLISHED["fp8"], num_hidden_layers=1)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadWeights, match="F8_E4M3"):
        store.pull(str(folder))
