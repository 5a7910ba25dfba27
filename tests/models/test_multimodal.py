"""Models that do more than text: their language part is served, bit for bit what the whole gives for text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from shoal.errors import UnsupportedModel
from shoal.executor.ends import FusedEnds
from shoal.executor.fused import FusedRunner
from shoal.executor.kernels.c_kernels import library
from shoal.executor.load import load_ends_runner, load_runner
from shoal.models.build.load import load_ends_module, load_span_module
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.checkpoint.multimodal import SERVED, TOWERS, text_config
from shoal.models.checkpoint.sizes import block_bytes
from shoal.models.seam.model import cache_argument
from shoal.models.store.config_only import glance
from shoal.models.store.store import ModelStore
from shoal.testing.checkpoints import BASE, FAMILIES, VOCAB, write_test_tokenizer
from shoal.types import Span

PROMPT = list(range(5, 27))
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
LINEAR: dict[str, Any] = {
    **{k: v for k, v in BASE.items() if not k.endswith("token_id")},
    "head_dim": 16,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
QWEN_TOWER = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}


def llama4_tower() -> Any:
    widths = ("vision_output_dim", "projector_input_dim", "projector_output_dim")
    return t.Llama4VisionConfig(**TOWER, **dict.fromkeys(widths, 32))


def siglip2_tower() -> Any:
    return t.Siglip2VisionConfig(**{k: v for k, v in TOWER.items() if k != "image_size"}, num_patches=4)


def internvl_tower() -> Any:
    return t.InternVLVisionConfig(**(TOWER | {"image_size": [28, 28], "patch_size": [14, 14]}))


def sparse() -> Any:
    options = {k: v for k, v in LINEAR.items() if k != "intermediate_size"}
    return t.Qwen3_5MoeTextConfig(
        **options,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    )


NESTED: dict[str, Callable[[], Any]] = {
    "gemma3": lambda: t.Gemma3Config(
        text_config=FAMILIES["gemma3"](), vision_config=t.SiglipVisionConfig(**TOWER), mm_tokens_per_image=4
    ),
    "mistral3": lambda: t.Mistral3Config(
        text_config=FAMILIES["mistral"](),
        vision_config=t.PixtralVisionConfig(**TOWER),
        tie_word_embeddings=False,
    ),
    "llama4": lambda: t.Llama4Config(text_config=FAMILIES["llama4"](), vision_config=llama4_tower()),
    "qwen3_5": lambda: t.Qwen3_5Config(text_config=t.Qwen3_5TextConfig(**LINEAR), vision_config=QWEN_TOWER),
    "qwen3_5_moe": lambda: t.Qwen3_5MoeConfig(text_config=sparse(), vision_config=QWEN_TOWER),
    "llava": lambda: t.LlavaConfig(
        text_config=FAMILIES["llama"](), vision_config=t.CLIPVisionConfig(**TOWER)
    ),
    "llava_next": lambda: t.LlavaNextConfig(
        text_config=FAMILIES["llama_untied"](), vision_config=t.CLIPVisionConfig(**TOWER)
    ),
    "llava_onevision": lambda: t.LlavaOnevisionConfig(
        text_config=FAMILIES["qwen2"](), vision_config=t.SiglipVisionConfig(**TOWER)
    ),
    "internvl": lambda: t.InternVLConfig(
        text_config=FAMILIES["qwen2"](), vision_config=internvl_tower(), tie_word_embeddings=False
    ),
    "idefics3": lambda: t.Idefics3Config(
        text_config=FAMILIES["llama_untied"](), vision_config=TOWER, scale_factor=1
    ),
    "smolvlm": lambda: t.SmolVLMConfig(
        text_config=FAMILIES["llama_untied"](), vision_config=t.SmolVLMVisionConfig(**TOWER), scale_factor=1
    ),
    "lfm2_vl": lambda: t.Lfm2VlConfig(text_config=FAMILIES["lfm2"](), vision_config=siglip2_tower()),
}
QUICK = ("gemma3", "mistral3", "qwen3_5", "llava")


def write_nested(folder: Path, kind: str) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = t.AutoModelForImageTextToText.from_config(NESTED[kind](), dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    write_test_tokenizer(folder)  # without one transformers is asked, in a process that has to import it
    return folder


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("nested")
    return lambda kind: root / kind if (root / kind).exists() else write_nested(root / kind, kind)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.models) for kind in NESTED]
)
def test_the_language_part_gives_what_the_whole_model_gives_for_text(
    kind: str, folder_of: Callable[[str], Path], store: ModelStore
) -> None:
    whole = t.AutoModelForImageTextToText.from_pretrained(folder_of(kind), dtype=torch.float32)
    if kind == "llama4":
        whole = whole.language_model  # transformers 5.24 looks for the images of a text, and fails
    model = store.resolve(str(folder_of(kind)))
    ends, spans = (
        load_ends_module(model),
        [load_span_module(model, Span(0, 2)), load_span_module(model, Span(2, 6))],
    )
    caches = [span.new_cache() for span in spans]
    cache_of_whole = t.DynamicCache(config=whole.config.get_text_config(decoder=True))
    for position, piece in ((0, PROMPT[:20]), (20, PROMPT[20:21]), (21, PROMPT[21:])):
        hidden = ends.embed(piece, position)
        for span, cache in zip(spans, caches, strict=True):
            hidden = span.forward(hidden, cache, position)
        with torch.inference_mode():
            out = whole(
                input_ids=torch.tensor([piece]), **cache_argument(whole, cache_of_whole), use_cache=True
            )
        assert torch.equal(ends.head(hidden), out.logits), f"at position {position}"


@pytest.mark.parametrize("kind", SERVED)
def test_what_a_config_leaves_out_means_what_it_means_to_transformers(kind: str) -> None:
    cls = type(NESTED[kind]())
    assert text_config(cls().to_dict())["model_type"] == cls().text_config.model_type
    for own in (True, False):
        for whole in ({}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}):
            text = cls().text_config.to_dict() | {"tie_word_embeddings": own}
            tied = text_config({"model_type": kind, "text_config": text} | whole)["tie_word_embeddings"]
            assert tied == cls(text_config=text, **whole).tie_word_embeddings


def test_every_model_that_is_served_so_is_tested() -> None:
    assert set(NESTED) == set(SERVED)


@pytest.mark.parametrize("kind", ["mistral3", "gemma3"])
def test_what_is_not_of_the_language_part_makes_another_model_where_it_is_run_alone(
    kind: str, folder_of: Callable[[str], Path], store: ModelStore, tmp_path: Path
) -> None:
    folder = folder_of(kind)
    checkpoint = open_checkpoint(folder)
    assert {name.split(".")[0] for name in checkpoint.tensors} <= {"model", "lm_head"}
    assert not any("vision" in name for name in checkpoint.tensors)
    model = store.resolve(str(folder))
    assert model.size == sum(entry.size for entry in checkpoint.tensors.values())
    assert model.shape.vocab_size == VOCAB and model.shape.n_blocks == 6 and model.shape.hidden_size == 64
    assert len(block_bytes(model, "int8")) == 6

    def changed(name: str, part: str) -> str:
        other = tmp_path / name
        other.mkdir()
        tensors = load_file(folder / "model.safetensors")
        key = next(key for key in tensors if part in key and key.endswith("weight"))
        tensors[key] = tensors[key] + 1
        save_file(tensors, other / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        config["vision_config"]["hidden_act"] = "relu"
        (other / "config.json").write_text(json.dumps(config))
        write_test_tokenizer(other)
        shutil.copy(folder / "generation_config.json", other)  # it decides when an answer ends
        return store.resolve(str(other)).digest

    assert (changed("tower", "vision_tower") != model.digest) == (kind in TOWERS)
    assert changed("language", "language_model") != model.digest


@pytest.mark.skipif(library() is None, reason="the kernels are not built")
@pytest.mark.parametrize("kind", ["gemma3", "mistral3", "llava"])
def test_the_kernels_run_a_language_part_of_llamas_shape(
    kind: str, folder_of: Callable[[str], Path], store: ModelStore, tmp_path: Path
) -> None:
    model = store.resolve(str(folder_of(kind)))
    runner = load_runner(model, Span(0, 6), "int8", kv="auto", threads=1, cache=tmp_path)
    ends = load_ends_runner(model, "int8", threads=1, cache=tmp_path)
    assert isinstance(runner, FusedRunner) and isinstance(ends, FusedEnds)
    near = torch.from_numpy(ends.embed(PROMPT, 0)) - load_ends_module(model).embed(PROMPT, 0)[0]
    assert float(near.abs().max()) < 1e-6


def test_a_look_at_the_config_sees_the_language_part(
    folder_of: Callable[[str], Path], store: ModelStore
) -> None:
    seen = glance(store, str(folder_of("gemma3")))
    assert seen.config.num_hidden_layers == 6 and seen.context == BASE["max_position_embeddings"]


@pytest.mark.parametrize(
    "config",
    [
        lambda: t.PaliGemmaConfig(
            text_config=FAMILIES["gemma"](), vision_config=t.SiglipVisionConfig(**TOWER)
        ),
        lambda: t.LlavaConfig(text_config=FAMILIES["cohere"](), vision_config=t.CLIPVisionConfig(**TOWER)),
    ],
    ids=["looks back at its prompt", "leaves a logit scale out"],
)
def test_a_model_whose_text_is_another_one_is_refused(
    config: Callable[[], Any], folder_of: Callable[[str], Path], store: ModelStore, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config().to_dict(), default=str))
    (tmp_path / "model.safetensors").write_bytes((folder_of("gemma3") / "model.safetensors").read_bytes())
    with pytest.raises(UnsupportedModel, match="does more than text"):
        store.resolve(str(tmp_path))
