"""Models that cannot be run, or cannot be cut, are refused with a reason, and nothing of theirs is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BartConfig

from shoal.errors import BadWeights, ModelError, UnknownModel, UnsupportedModel, UsageError
from shoal.models.build.load import load_ends_module, load_span_module
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.store.local_model import LocalModel
from shoal.models.store.store import ModelStore
from shoal.testing.checkpoints import write_checkpoint
from shoal.types import Span

Edit = Callable[..., Path]


@pytest.fixture
def edited(tmp_path: Path) -> Edit:
    """A small Llama whose config is changed."""

    def edit(**changes: object) -> Path:
        folder = write_checkpoint(tmp_path / "edited")
        path = folder / "config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        return folder

    return edit


def test_code_that_comes_with_a_model_is_never_run(edited: Edit, store: ModelStore, tmp_path: Path) -> None:
    proof = tmp_path / "it_ran"
    folder = edited(
        model_type="evil",
        auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"},
        architectures=["Evil"],
    )
    (folder / "evil.py").write_text(f"open({str(proof)!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(UnsupportedModel, match="auto_map") as caught:
        store.pull(str(folder))
    assert caught.value.check
    assert not proof.exists()


def test_code_beside_a_known_type_is_ignored(edited: Edit, store: ModelStore, tmp_path: Path) -> None:
    proof = tmp_path / "it_ran"
    folder = edited(auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"})
    (folder / "evil.py").write_text(f"open({str(proof)!r}, 'w')\nclass Evil: pass\n")
    model = store.pull(str(folder))
    load_span_module(model, Span(0, 1))
    load_ends_module(model)
    assert not proof.exists()


def test_pickled_weights_are_never_loaded(edited: Edit, store: ModelStore) -> None:
    folder = edited()
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.ones(1)}, folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match="pickled") as caught:
        store.pull(str(folder))
    assert "safetensors" in caught.value.check


def test_weights_quantised_in_a_way_that_is_not_read_are_refused(edited: Edit, store: ModelStore) -> None:
    with pytest.raises(UnsupportedModel, match="quantised by 'hqq'") as caught:
        store.pull(str(edited(quantization_config={"quant_method": "hqq", "bits": 4})))
    assert "gptq, awq, compressed-tensors" in caught.value.check


def test_a_config_that_promises_quantised_weights_over_plain_ones_is_refused(
    edited: Edit, store: ModelStore
) -> None:
    with pytest.raises(BadWeights, match="no tensor is quantised by it"):
        store.pull(str(edited(quantization_config={"quant_method": "gptq", "bits": 4})))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 0},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": "six"},
        {"num_hidden_layers": 10**9},
        {"hidden_size": 0},
        {"vocab_size": 2**40},
        {"model_type": None},
        {"model_type": 7},
        {"num_attention_heads": 0},
    ],
    ids=str,
)
def test_a_config_that_makes_no_sense_is_refused(
    changes: dict[str, object], edited: Edit, store: ModelStore
) -> None:
    with pytest.raises(ModelError):
        load_span_module(store.pull(str(edited(**changes))), Span(0, 1))


@pytest.mark.parametrize("text", ["", "[]", "{", "nan", "[" * 100_000], ids=lambda t: t[:4])
def test_a_config_that_is_no_object_is_refused(text: str, edited: Edit, store: ModelStore) -> None:
    folder = edited()
    (folder / "config.json").write_text(text)
    with pytest.raises(BadWeights):
        store.pull(str(folder))


def test_a_folder_without_a_config_is_no_model(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(UnknownModel):
        store.pull(str(tmp_path) + "/")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_json_with_a_byte_order_mark_is_read(
    encoding: str, family: str, store: ModelStore, tmp_path: Path
) -> None:
    """PowerShell and Notepad write it. The model is the same, but for what peers are given as it is."""
    folder = write_checkpoint(tmp_path / "marked", family, shard="100KB")
    before = store.pull(str(folder))
    for name in ("config.json", "model.safetensors.index.json", "generation_config.json"):
        text = (folder / name).read_text("utf-8")
        (folder / name).write_bytes(text.encode(encoding))
        after = store.pull(str(folder))
        assert after.end_tokens == before.end_tokens
        assert (after.digest == before.digest) == (name != "generation_config.json")
    load_span_module(after, Span(0, 1))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_json_that_is_no_text_is_named(name: str, edited: Edit, store: ModelStore) -> None:
    folder = edited()
    for raw in (b"\xff{}", b"\x80\x81", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"):
        (folder / name).write_bytes(raw)
        with pytest.raises(BadWeights, match=name):
            store.pull(str(folder))


def test_a_config_that_cannot_be_opened_is_named(edited: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = edited()

    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(BadWeights, match="Permission denied"):
        open_checkpoint(folder)


SIZES = {
    "vocab_size_per_layer_input": 262144,
    "hidden_size_per_layer_input": 262144,
    "block_size": 1048576,
    "max_position_embeddings": 10485760,
}


@pytest.mark.parametrize(
    "change",
    [
        {"rms_norm_eps": float("nan")},
        {"layer_norm_epsilon": float("inf")},
        {"norm_eps": -1e-5},
        {"rms_norm_eps": 1e9},
        {"rope_theta": float("nan")},
        {"rope_scaling": {"rope_type": "yarn", "factor": float("inf")}},
        {"rope_scaling": {"rope_type": "longrope", "long_factor": [1.0, float("nan")]}},
    ],
    ids=str,
)
def test_numbers_of_which_every_answer_would_be_nan_are_refused_by_their_name(
    edited: Edit, change: dict[str, object]
) -> None:
    named = [name for part in (change, *change.values()) if isinstance(part, dict) for name in part][-1]
    with pytest.raises(BadWeights, match=named):
        open_checkpoint(edited(**change))


def test_an_infinity_that_means_no_limit_is_read(edited: Edit) -> None:
    """Mamba 2's config has one."""
    open_checkpoint(edited(time_step_limit=[0.0, float("inf")], layer_norm_eps=0))


COUNTS = ("num_hidden_layers", "n_layer", "n_routed_experts", "encoder_layers", "num_local_experts", "depth")


@pytest.mark.parametrize("name", SIZES)
def test_a_large_size_is_no_absurd_count(name: str, edited: Edit) -> None:
    assert open_checkpoint(edited(**{name: SIZES[name]})).config[name] == SIZES[name]


@pytest.mark.parametrize("name", COUNTS)
def test_an_absurd_count_is_refused_wherever_it_stands(name: str, edited: Edit) -> None:
    for changes in ({name: 262144}, {"text_config": {"inner": {name: 262144}}}):
        with pytest.raises(BadWeights, match=name):
            open_checkpoint(edited(**changes))


def test_an_encoder_and_decoder_of_another_family_is_refused(store: ModelStore, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "bart")
    BartConfig(encoder_layers=6, d_model=64).save_pretrained(folder)
    with pytest.raises(UnsupportedModel):
        store.pull(str(folder))


def test_state_that_lives_outside_of_the_cache_is_found(tmp_path: Path, store: ModelStore) -> None:
    """RecurrentGemma keeps its state in its modules: two sessions would mix."""
    model = store.pull(str(write_checkpoint(tmp_path / "rg", "recurrent_gemma")))
    # What is found first depends on the version of transformers.
    with pytest.raises(UnsupportedModel, match=r"outside of its cache|cache does not grow"):
        load_span_module(model, Span(0, 3))


@pytest.mark.parametrize("family", ["gemma3n", "zamba2"])
def test_blocks_that_look_at_more_than_hidden_states_are_found(
    family: str, tmp_path: Path, store: ModelStore
) -> None:
    """Gemma 3n gives its blocks embeddings of the tokens, Zamba the first hidden states."""
    model = store.pull(str(write_checkpoint(tmp_path / family, family)))
    with pytest.raises(UnsupportedModel):
        load_span_module(model, Span(1, 4))


def test_a_span_beyond_the_model_is_refused(local: Callable[[str], LocalModel]) -> None:
    with pytest.raises(UsageError, match="6 blocks"):
        load_span_module(local("llama"), Span(4, 7))


def test_a_missing_tensor_is_named(edited: Edit, store: ModelStore) -> None:
    folder = edited()
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    model = store.pull(str(folder))
    with pytest.raises(BadWeights, match=r"layers\.3\.mlp\.up_proj"):
        load_span_module(model, Span(2, 4))
    load_span_module(model, Span(0, 3))


def test_a_tensor_of_another_shape_is_refused(edited: Edit, store: ModelStore) -> None:
    folder = edited()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.3.mlp.up_proj.weight"] = torch.ones(3, 3)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BadWeights):
        load_span_module(store.pull(str(folder)), Span(2, 4))
