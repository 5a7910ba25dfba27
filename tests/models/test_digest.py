"""A digest names one model: the same tensors and config give the same, anything else another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shoal.errors import BadWeights
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.checkpoint.digest import compute_digest, files_fingerprint
from shoal.testing.checkpoints import write_checkpoint
from shoal.types import Digest


def digest(folder: Path) -> Digest:
    return compute_digest(open_checkpoint(folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_one_file_or_many_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    sharded = write_checkpoint(tmp_path / "sharded", shard="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 3
    assert digest(sharded) == digest(folder)


def test_it_is_the_same_tomorrow(folder: Path) -> None:
    """Changing what a digest covers makes every swarm's models strangers: it must be meant."""
    small = folder.parent / "fixed"
    small.mkdir()
    save_file({"w": torch.arange(4.0), "b": torch.ones(2, dtype=torch.bfloat16)}, small / "model.safetensors")
    (small / "config.json").write_text('{"model_type": "llama", "hidden_size": 4}')
    assert digest(small) == "sha256:9549c731b84f1f52bebdcaa04e95e0ea2da586b7f9a14bb1ea6470245ec79f57"


def test_who_wrote_it_with_what_does_not_matter(folder: Path) -> None:
    before = digest(folder)
    edit_config(folder, transformers_version="4.0", _name_or_path="elsewhere", dtype="bfloat16")
    assert digest(folder) == before


@pytest.mark.parametrize("change", [{"rope_theta": 5.0}, {"rms_norm_eps": 1e-5}, {"new": 1}], ids=str)
def test_another_config_is_another_model(folder: Path, change: dict[str, object]) -> None:
    before = digest(folder)
    edit_config(folder, **change)
    assert digest(folder) != before


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_no_numbers_are_refused_by_the_tensors_name(
    folder: Path, dtype: torch.dtype, value: str
) -> None:
    """One element of many, in the last of several pieces that are read."""
    large = torch.full((1 << 20,), torch.finfo(dtype).max, dtype=dtype)  # the largest is a number
    save_file({"fine": large, "weight": large.clone()}, folder / "model.safetensors")
    digest(folder)
    large[-1] = float(value)
    save_file({"fine": torch.ones(4, dtype=dtype), "weight": large}, folder / "model.safetensors")
    with pytest.raises(BadWeights, match="'weight' has elements that are NaN or infinite") as refused:
        digest(folder)
    assert refused.value.check


@pytest.mark.parametrize(
    "name",
    [
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
        "generation_config.json",
        "modules.json",
        "sentence_bert_config.json",
        "1_Pooling/config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ],
)
def test_another_template_tokenizer_or_generation_config_is_another_model(folder: Path, name: str) -> None:
    """Whoever could swap one of them would decide what a model is asked, or when its answer ends."""
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    found = {digest(folder)}
    for text in ("{}", "{ }"):
        file.write_text(text)
        found.add(digest(folder))
    assert len(found) == 3


def test_what_is_read_of_a_folder_alone_counts(folder: Path) -> None:
    before = digest(folder)
    (folder / "README.md").write_text("anything")
    (folder / "trainer_state.json").write_text("{}")
    assert digest(folder) == before
    (folder / "vocab.json").write_text("{}")
    assert digest(folder) == before, "where there is a tokenizer.json, it is not made of other files"
    (folder / "tokenizer.json").unlink()
    without = digest(folder)
    (folder / "vocab.json").write_text("{ }")
    assert len({before, without, digest(folder)}) == 3


def test_one_bit_of_one_weight_is_another_model(folder: Path) -> None:
    before = digest(folder)
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    assert digest(folder) != before


def test_a_name_a_shape_or_a_dtype_is_another_model(folder: Path) -> None:
    found = {digest(folder)}
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    for changed in (
        {"renamed" if k == name else k: v for k, v in tensors.items()},
        tensors | {name: tensors[name].reshape(-1)},
        tensors | {name: tensors[name].view(torch.int32)},
    ):
        save_file(changed, folder / "model.safetensors")
        found.add(digest(folder))
    assert len(found) == 4


def test_the_fingerprint_sees_changes_without_reading(folder: Path) -> None:
    before = files_fingerprint(folder)
    assert files_fingerprint(folder) == before
    (folder / "model.safetensors").touch()
    assert files_fingerprint(folder) != before
    (folder / "chat_template.jinja").write_text("a")
    with_template = files_fingerprint(folder)
    (folder / "chat_template.jinja").write_text("another")
    assert files_fingerprint(folder) != with_template
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text("{}")
    with_pooling = files_fingerprint(folder)
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode": "cls"}')
    assert files_fingerprint(folder) != with_pooling
