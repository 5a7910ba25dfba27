"""Spans of every family with packed linear layers: near float32, in a fraction of its memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shoal.errors import BadWeights, UnsupportedModel
from shoal.executor.device.products import find_products
from shoal.executor.kernels import c_kernels, torch_kernels
from shoal.executor.kernels.c_kernels import ThreadTeam
from shoal.executor.packed import PackedExperts, PackedLinear, load_packed
from shoal.models.build.load import load_span_module
from shoal.models.build.span import SpanModule
from shoal.models.store.local_model import LocalModel
from shoal.models.store.store import ModelStore
from shoal.testing.checkpoints import FAMILIES, write_checkpoint
from shoal.types import Format, Span

REFUSED = ("recurrent_gemma", "gemma3n", "zamba2")
"""Those whose blocks cannot be served apart, in whatever format."""
FAMILY = [name for name in FAMILIES if name not in REFUSED]
SPAN = Span(1, 5)
NEAR: tuple[tuple[Format, float], ...] = (("int8", 3e-2), ("bf16", 1e-2), ("w8a8", 6e-2))
"""Formats, and how far from float32 they may be."""
DIFFERENT = ("llama", "gpt2", "mixtral", "gpt_oss", "deepseek_v3", "falcon", "mamba", "qwen3_next", "bamba")
"""Families that differ in what is packed: turned weights, biases, experts, and recurrent layers."""

Local = Callable[[str], LocalModel]


@pytest.fixture(scope="module")
def local(families: Local) -> Local:
    return families


def team() -> ThreadTeam | None:
    return None if c_kernels.library() is None else ThreadTeam(1)


def outputs(module: SpanModule) -> torch.Tensor:
    """A prefill, a decoded token and a few more, past every sliding window."""
    hidden = torch.randn(1, 14, module.width, generator=torch.Generator().manual_seed(3))
    cache = module.new_cache()
    return torch.cat([module.forward(hidden[:, a:b], cache, a) for a, b in ((0, 10), (10, 11), (11, 14))], 1)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("family", FAMILY)
def test_the_output_is_near_float32(family: str, local: Local) -> None:
    """Of every family its layers are found and packed; what a format does to them is the same in all."""
    exact = outputs(load_span_module(local(family), SPAN))
    for format, bound in NEAR if family in DIFFERENT else NEAR[:1]:
        packed = load_packed(local(family), SPAN, format, team=team())
        assert packed.dtype == torch.float32
        assert difference(outputs(packed), exact) < bound


@pytest.mark.parametrize(("family", "format"), [("olmo", "bf16"), ("nanochat", "int8"), ("olmo", "int4")])
def test_a_model_whose_norms_have_no_weights_has_no_parameter_left(
    family: str, format: Format, local: Local
) -> None:
    packed = load_packed(local(family), SPAN, format, team=team())
    assert not list(packed.model.parameters())
    assert (packed.dtype, packed.device) == (torch.float32, torch.device("cpu"))
    assert torch.equal(
        outputs(packed.part(Span(2, 4))), outputs(load_packed(local(family), Span(2, 4), format, team=team()))
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gpt_oss", "falcon", "bamba"])
def test_it_takes_a_fraction_of_the_memory(family: str, local: Local) -> None:
    """Scales count, and so do norms and biases, which stay float32; the last part of a real model's bytes."""
    exact = load_span_module(local(family), SPAN).tensor_bytes
    shares: tuple[tuple[Format, float], ...] = (("int4", 0.20), ("int8", 0.30), ("bf16", 0.52))
    for format, share in shares if family in ("gpt2", "gpt_oss") else shares[:1]:
        packed = load_packed(local(family), SPAN, format, team=team())
        assert packed.tensor_bytes < share * exact
        assert outputs(packed).isfinite().all()


def test_what_decides_much_stays_float32(local: Local) -> None:
    """Routers, and what a model's own code does more with than multiply."""
    sparse = load_packed(local("qwen3_next"), SPAN, "int8", team=team()).model
    names = {
        name.rpartition(".")[2] for name, module in sparse.named_modules() if isinstance(module, PackedLinear)
    }
    assert {"q_proj", "out_proj", "in_proj_qkvz"} <= names
    assert not names & {"gate", "shared_expert_gate"}
    assert any(isinstance(module, PackedExperts) for module in sparse.modules())
    mamba = load_packed(local("mamba"), SPAN, "int8", team=team()).model
    assert not any(
        "dt_proj" in name for name, module in mamba.named_modules() if isinstance(module, PackedLinear)
    )


def test_a_part_of_a_span_shares_its_weights(local: Local) -> None:
    whole = load_packed(local("mixtral"), SPAN, "int8", team=team())
    part, alone = whole.part(Span(2, 4)), load_packed(local("mixtral"), Span(2, 4), "int8", team=team())
    mine = {m for m in whole.model.modules() if isinstance(m, PackedLinear)}
    assert {m for m in part.model.modules() if isinstance(m, PackedLinear)} < mine
    assert part.tensor_bytes == alone.tensor_bytes
    assert torch.equal(outputs(part), outputs(alone))


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_without_the_kernels_torch_computes_the_same(
    family: str, local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_kernels = outputs(load_packed(local(family), SPAN, "int8", team=team()))
    taken: list[int] = []
    linear = torch_kernels.linear

    def counted(matrix: c_kernels.Matrix, x: torch.Tensor) -> torch.Tensor:
        taken.append(len(x))
        return linear(matrix, x)

    monkeypatch.setattr(torch_kernels, "linear", counted)
    monkeypatch.setattr(c_kernels, "library", lambda: None)
    assert torch.equal(outputs(load_packed(local(family), SPAN, "int8", team=None)), with_kernels)
    assert taken


@pytest.mark.parametrize(
    ("family", "format"),
    [
        *((family, "int8") for family in ("gpt2", "gpt_oss", "qwen3_next")),
        *((family, "int4") for family in ("gpt2", "mixtral", "falcon", "mamba")),
    ],
)
def test_on_a_device_torch_computes_the_linear_layers_there(
    family: str, format: Format, local: Local
) -> None:
    """Biases, turned weights, experts, and layers whose weights the model's own code reads."""
    device = torch.device("cpu")
    packed = load_packed(local(family), SPAN, format, team=None, products=find_products(device))
    expected = load_packed(local(family), SPAN, format, team=team())
    assert difference(outputs(packed), outputs(expected)) < 0.02
    assert packed.tensor_bytes < 1.2 * expected.tensor_bytes  # torch's int4 has a minimum beside each scale
    layers = [m for m in packed.model.modules() if isinstance(m, PackedLinear)]
    assert layers
    assert all(layer.placed is not None and layer.matrix is None for layer in layers)
    others = [m for m in expected.model.modules() if isinstance(m, PackedLinear)]
    assert difference(layers[0].weight, others[0].weight) < 0.01


def test_fp32_is_the_models_own(local: Local) -> None:
    packed = load_packed(local("gpt2"), SPAN, "fp32", team=team())
    assert torch.equal(outputs(packed), outputs(load_span_module(local("gpt2"), SPAN)))


def test_what_cannot_be_packed_is_refused(tmp_path: Path, local: Local) -> None:
    def changed(name: str, **fields: object) -> LocalModel:
        folder = write_checkpoint(tmp_path / name, "gpt2")
        config = json.loads((folder / "config.json").read_text()) | fields
        (folder / "config.json").write_text(json.dumps(config))
        return ModelStore(tmp_path / "store").resolve(str(folder))

    with pytest.raises(UnsupportedModel):  # and no checkpoint may claim to be in our formats
        load_packed(changed("ours", quantization_config={"quant_method": "shoal"}), SPAN, "int8", team=team())
    with pytest.raises(BadWeights):
        load_packed(changed("wider", n_inner=128), SPAN, "int8", team=team())


# ---- the peak ----

SCRIPT = """
import json, pathlib, sys
import torch, transformers
from shoal.executor.kernels.c_kernels import ThreadTeam, library
from shoal.executor.packed import load_packed
from shoal.models.store.store import ModelStore
from shoal.types import Span
def status(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))
store, small, *larger = ModelStore(pathlib.Path(sys.argv[1])), *sys.argv[2:]
team = None if library() is None else ThreadTeam(1)
load_packed(store.resolve(small), Span(0, 6), "int8", team=team)  # what is imported and allocated once
kept = []
for folder in larger:
    before = status("VmRSS")
    kept.append(load_packed(store.resolve(folder), Span(0, 12), "int8", team=team))
    # The peak is the whole process: the load before leaves less of its own than the bound allows.
    print(json.dumps({"grown": status("VmHWM") - before, "packed": kept[-1].tensor_bytes}))
"""


@pytest.mark.models
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_peaks_near_the_packed_size(tmp_path: Path) -> None:
    """12 blocks of 13 MB each in float32: a copy of them all, or of the file's pages, would be seen."""
    small = write_checkpoint(tmp_path / "small", "gpt2")
    larger = write_checkpoint(tmp_path / "larger", "gpt2", n_layer=12, n_embd=512, n_head=8)
    halves = shutil.copytree(larger, tmp_path / "halves")
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(larger / "model.safetensors").items()}
    save_file(tensors, halves / "model.safetensors", {"format": "pt"})
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "store"), *map(str, (small, larger, halves))]
    lines = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).splitlines()
    assert len(lines) == 2
    for line in lines:
        found = json.loads(line)
        assert found["packed"] > 35e6
        assert found["grown"] < 1.6 * found["packed"], found
