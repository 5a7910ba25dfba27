"""Folders with adapters: what PEFT writes is read, and what is not computed here is refused by its name."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from shoal.errors import BadWeights, DigestMismatch, ShoalError, UnsupportedModel, UsageError
from shoal.models.adapters.names import split_name
from shoal.models.adapters.read import named_path, read_adapter
from shoal.models.store.store import ModelStore
from shoal.node.adapters.read import read_adapters
from shoal.testing.adapters import write_adapter
from shoal.testing.checkpoints import BLOCKS, write_checkpoint

A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture
def folder(tmp_path, checkpoint):
    return write_adapter(tmp_path / "pirate", checkpoint, ["q_proj", "down_proj"])


def change(folder, **said):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | said))


def change_tensors(folder, **tensors):
    path = folder / "adapter_model.safetensors"
    save_file({name: t for name, t in (load_file(path) | tensors).items() if t is not None}, path)


def test_it_has_a_name_a_digest_and_its_layers_by_block(folder):
    found = read_adapter(folder)
    assert (found.name, found.list_name, found.scale, found.rank) == ("pirate", "model.layers", 2.0, 4)
    assert sorted(found.blocks) == list(range(BLOCKS))
    assert sorted(found.blocks[0]) == ["mlp.down_proj", "self_attn.q_proj"]
    assert found.digest == read_adapter(folder, "other").digest
    change(folder, lora_alpha=9)
    changed = read_adapter(folder)
    change_tensors(folder, **{A: load_file(folder / "adapter_model.safetensors")[A] * 2})
    assert len({found.digest, changed.digest, read_adapter(folder).digest}) == 3


def test_16_bits_are_read_as_what_they_are(folder):
    half = load_file(folder / "adapter_model.safetensors")[A].astype(np.float16)
    change_tensors(folder, **{A: half})
    assert np.array_equal(read_adapter(folder).blocks[0]["self_attn.q_proj"].down, half.astype(np.float32))


@pytest.mark.parametrize("value", [1, 0, "true", [True]])
def test_a_word_for_rslora_that_is_neither_yes_nor_no_is_refused(folder, value):
    change(folder, use_rslora=value)
    with pytest.raises(BadWeights, match="use_rslora is"):
        read_adapter(folder)


def test_the_scale_of_rslora_goes_by_the_root_of_the_rank(folder):
    change(folder, use_rslora=True)
    assert read_adapter(folder).scale == 4.0


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"something_new": {"on": 1}}, "something_new"),
        ({"r": 65}, "ranks up to 64"),
    ],
)
def test_what_is_not_computed_is_refused_by_its_name(folder, said, names):
    change(folder, **said)
    with pytest.raises(UnsupportedModel, match=names):
        read_adapter(folder)


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "base_model.model.model.layers.99999.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.norm.weight",
    ],
)
def test_a_tensor_of_nothing_but_linear_layers_of_blocks_is_refused_by_its_name(folder, name):
    change_tensors(folder, **{name: np.ones((4, 64), np.float32)})
    with pytest.raises(UnsupportedModel, match=name.replace("base_model.model.model.norm", "norm")[-20:]):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("tensor", "error", "says"),
    [
        (None, BadWeights, "but one of lora_A and lora_B"),
        (np.ones((3, 64), np.float32), BadWeights, "do not fit"),
        (np.ones(4, np.float32), BadWeights, "do not fit"),
        (np.full((4, 64), np.nan, np.float32), BadWeights, "NaN or infinite"),
        (np.ones((4, 64), np.int32), UnsupportedModel, "is in I32"),
        (np.ones((4, 64), np.float64), UnsupportedModel, "is in F64"),
    ],
)
def test_tensors_that_cannot_be_are_refused(folder, tensor, error, says):
    change_tensors(folder, **{A: tensor})
    with pytest.raises(error, match=says):
        read_adapter(folder)


def test_no_pickle_is_read_and_a_folder_that_is_none_is_told(folder, tmp_path):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(BadWeights, match=r"adapter_model\.bin, which is there, is never read"):
        read_adapter(folder)
    with pytest.raises(BadWeights, match="is no adapter"):
        read_adapter(tmp_path / "nowhere", "x")


def test_a_hostile_file_is_refused_before_it_takes_memory(folder):
    path = folder / "adapter_model.safetensors"
    for header in (b"{" * 100_000, b'{"a":{"dtype":"F32","shape":[281474976710000],"data_offsets":[0,4]}}'):
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
        with pytest.raises(ShoalError):
            read_adapter(folder)
    (folder / "adapter_config.json").write_bytes(b"[" * (2 << 20))
    with pytest.raises(BadWeights):
        read_adapter(folder)


def test_an_adapter_of_another_model_is_refused_by_digest_and_by_blocks(folder, checkpoint, tmp_path):
    model = ModelStore(tmp_path / "models").resolve(str(checkpoint))
    (folder / "shoal.json").write_text(json.dumps({"base": model.digest}))
    assert [adapter.name for adapter in read_adapters([str(folder)], model)] == ["pirate"]
    (folder / "shoal.json").write_text(json.dumps({"base": "sha256:" + "0" * 64}))
    with pytest.raises(DigestMismatch, match="was made for sha256:0000"):
        read_adapters([str(folder)], model)
    (folder / "shoal.json").write_text(json.dumps({"base": 7}))
    with pytest.raises(BadWeights, match="base is no digest"):
        read_adapters([str(folder)], model)
    (folder / "shoal.json").unlink()
    pair = {
        name.replace("layers.0", "layers.9"): t
        for name, t in load_file(folder / "adapter_model.safetensors").items()
        if "layers.0" in name
    }
    change_tensors(folder, **pair)
    with pytest.raises(DigestMismatch, match=r"model\.layers\.9, which is not there"):
        read_adapters([str(folder)], model)


def test_names_are_given_and_not_twice(folder, checkpoint, tmp_path):
    model = ModelStore(tmp_path / "models").resolve(str(checkpoint))
    assert named_path(f"poet={folder}") == ("poet", str(folder))
    assert named_path(str(folder)) == ("", str(folder))
    with pytest.raises(UsageError, match="2 adapters are called pirate"):
        read_adapters([str(folder), f"pirate={folder}"], model)
    with pytest.raises(UsageError, match="at most 8"):
        read_adapters([str(folder)] * 9, model)
    with pytest.raises(UsageError, match="how the beginning of a digest looks"):
        read_adapters([f"deadbeef={folder}"], model)
    with pytest.raises(UsageError, match="cannot be called"):
        read_adapter(folder, "a b")


def test_a_models_name_may_have_an_adapters_behind_it(folder):
    digest = "sha256:" + "0" * 64
    assert split_name("SmolLM2:pirate") == ("SmolLM2", "pirate")
    assert split_name("org/Model.gguf:pirate") == ("org/Model.gguf", "pirate")
    assert split_name(f"{digest}:pirate") == (digest, "pirate")
    for whole in ("SmolLM2", digest, str(folder), "a:", ":b", "a:b c"):
        assert split_name(whole) == (whole, None)
