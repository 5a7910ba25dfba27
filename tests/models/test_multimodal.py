"""Models that do more than text: their language part is served, bit for bit what the whole gives for text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from shoal.errors import BadWeights, UnsupportedModel
from shoal.executor.ends import FusedEnds
from shoal.executor.fused import FusedRunner
from shoal.executor.kernels.c_kernels import library
from shoal.executor.load import load_ends_runner, load_runner
from shoal.models.build.load import load_ends_module, load_span_module
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.checkpoint.llama_config import read_llama_config
from shoal.models.checkpoint.multimodal import SERVED, TOWERS, text_config
from shoal.models.checkpoint.sizes import block_bytes
from shoal.models.seam.model import cache_argument
from shoal.models.store.config_only import glance
from shoal.models.store.store import ModelStore
from shoal.models.text.pictures import PictureWords
from shoal.models.vision.pixels import PicturePixels
from shoal.models.vision.settings import PatchSettings, VisionSettings
from shoal.models.vision.tower import load_tower
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
OLD_QWEN_TOWER = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
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


def three_positions() -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    fields = FAMILIES["qwen2"]().to_dict() | {"rope_parameters": rope}
    return {name: value for name, value in fields.items() if name != "model_type"}


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
    "qwen2_5_vl": lambda: t.Qwen2_5_VLConfig(
        text_config=three_positions(), vision_config=QWEN_TOWER | {"fullatt_block_indexes": [1]}
    ),
    "qwen2_vl": lambda: t.Qwen2VLConfig(text_config=three_positions(), vision_config=OLD_QWEN_TOWER),
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
QUICK = ("gemma3", "mistral3", "qwen2_vl", "qwen3_5", "llava")


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
    kinds = (SERVED[kind].also, SERVED[kind].text)
    assert cls().text_config.model_type in kinds and text_config(cls().to_dict())["model_type"] == kinds[1]
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
@pytest.mark.parametrize("kind", ["gemma3", "mistral3", "llava", "qwen2_5_vl"])
def test_the_kernels_run_a_language_part_of_llamas_shape(
    kind: str, folder_of: Callable[[str], Path], store: ModelStore, tmp_path: Path
) -> None:
    model = store.resolve(str(folder_of(kind)))
    runner = load_runner(model, Span(0, 6), "int8", kv="auto", threads=1, cache=tmp_path)
    ends = load_ends_runner(model, "int8", threads=1, cache=tmp_path)
    assert isinstance(runner, FusedRunner) and isinstance(ends, FusedEnds)
    near = torch.from_numpy(ends.embed(PROMPT, 0)) - load_ends_module(model).embed(PROMPT, 0)[0]
    assert float(near.abs().max()) < 1e-6


def flat(folder: Path, to: Path, **changes: Any) -> Path:
    """A Qwen-VL as the first ones were published: all that is not of the tower on top, and older names."""
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    theta = text.pop("rope_parameters")["rope_theta"]
    scaling = {"type": "mrope", "mrope_section": [2, 3, 3]}
    config = text | config | {"rope_theta": theta, "rope_scaling": scaling} | changes
    config["vision_config"].pop("model_type")
    tensors = load_file(folder / "model.safetensors")
    older = {name.replace("model.language_model.", "model."): tensor for name, tensor in tensors.items()}
    older = {name.replace("model.visual.", "visual."): tensor for name, tensor in older.items()}
    to.mkdir()
    (to / "config.json").write_text(json.dumps(config))
    save_file(older, to / "model.safetensors", {"format": "pt"})
    write_test_tokenizer(to)
    return to


def test_a_config_that_says_all_on_top_means_the_same(
    folder_of: Callable[[str], Path], store: ModelStore, tmp_path: Path
) -> None:
    folder = folder_of("qwen2_vl")
    nested, other = open_checkpoint(folder), open_checkpoint(flat(folder, tmp_path / "flat"))
    assert read_llama_config(nested.config) == read_llama_config(other.config) is not None
    assert nested.tensors.keys() == other.tensors.keys()
    assert nested.tower is not None and other.tower is not None
    assert len(nested.tower.tensors) == len(other.tower.tensors) > 0
    hidden = torch.randn(1, 5, 64)
    outs = [
        module.forward(hidden, module.new_cache(), 0, grids=((1, 1, 3),))
        for module in (load_span_module(store.resolve(str(f)), Span(0, 6)) for f in (folder, other.folder))
    ]
    assert torch.equal(*outs)
    settings = VisionSettings(PictureWords(0), 0, False, 0, "", {}, PatchSettings(14, 2, 2))
    pixels = PicturePixels(np.random.default_rng(0).random((24, 1176), np.float32), 6, (2, 3))
    rows = [load_tower(f, settings, 64).look(pixels) for f in (folder, other.folder)]
    assert np.array_equal(*rows) and rows[0].any()


@pytest.mark.parametrize("sections", [[2, 3, 4], [2, 6], [-2, 5, 5], "2,3,3", None])
def test_sections_that_do_not_add_up_are_refused(
    sections: object, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    scaling = {"type": "mrope", "mrope_section": sections}
    copy = flat(folder_of("qwen2_vl"), tmp_path / "flat", rope_scaling=scaling)
    with pytest.raises(BadWeights, match="mrope_section"):
        open_checkpoint(copy)


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
