"""Tiny random models that look at pictures, and pictures, for tests."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers as t
from PIL import Image
from tokenizers import AddedToken, Tokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from shoal.testing.checkpoints import FAMILIES, write_test_tokenizer

TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
ROW, OPENS, CLOSES = 297, 298, 299
"""Tokens of the tokenizer, which have other names here."""
WORDS = {ROW: "<image>", OPENS: "<start_of_image>", CLOSES: "<end_of_image>"}
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}WORD{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def _llava(tower: Any, strategy: Literal["default", "full"] = "default") -> Any:
    return t.LlavaConfig(
        text_config=FAMILIES["llama_untied"](),
        vision_config=tower,
        image_token_index=ROW,
        vision_feature_select_strategy=strategy,
    )


def _three_positions() -> dict[str, Any]:
    text = FAMILIES["qwen2"]().to_dict()
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    return {name: value for name, value in text.items() if name != "model_type"}


SEEING: dict[str, Callable[[], Any]] = {
    "llava": lambda: _llava(t.CLIPVisionConfig(**TOWER)),
    "llava_siglip": lambda: _llava(t.SiglipVisionConfig(**TOWER, vision_use_head=False), "full"),
    "gemma3": lambda: t.Gemma3Config(
        text_config=FAMILIES["gemma3"](),
        vision_config=t.SiglipVisionConfig(**TOWER, vision_use_head=False),
        mm_tokens_per_image=4,
        image_token_index=ROW,
        boi_token_index=OPENS,
        eoi_token_index=CLOSES,
    ),
    "qwen2_vl": lambda: t.Qwen2VLConfig(
        text_config=_three_positions(),
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=ROW,
    ),
    "qwen2_5_vl": lambda: t.Qwen2_5_VLConfig(
        text_config=_three_positions(),
        vision_config={
            **{"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2},
            **{"out_hidden_size": 64, "window_size": 56, "fullatt_block_indexes": [1]},
        },
        image_token_id=ROW,
    ),
}
"""A config of every kind of model that looks at pictures."""


def write_seeing(folder: Path, kind: str = "llava") -> Path:
    """Write a random model, in float32, with a tokenizer, a template and an image processor."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = t.AutoModelForImageTextToText.from_config(SEEING[kind](), dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
            elif not parameter.any():
                parameter.data += 0.3 * torch.randn_like(parameter)  # Gemma 3's projector begins as zeros
            elif "language_model" not in name and "lm_head" not in name:
                parameter.data *= 8  # else all pictures look alike, and no token depends on them
            elif kind.startswith("qwen"):
                parameter.data *= 10  # else an answer repeats one token, wherever rows of pictures are
    model.save_pretrained(folder)
    processor_of(kind).save_pretrained(folder)
    write_test_tokenizer(folder)
    _add_words(folder, WORDS[OPENS if kind == "gemma3" else ROW])
    return folder


def processor_of(kind: str) -> Any:
    """The image processor of a model."""
    side = TOWER["image_size"]
    square = {"height": side, "width": side}
    if kind == "gemma3":
        return Gemma3ImageProcessorPil(size=square)
    if kind.startswith("qwen"):
        return Qwen2VLImageProcessorPil()
    if kind == "llava":
        return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=square)
    return SiglipImageProcessorPil(size=square)


def picture(seed: int = 0, size: tuple[int, int] = (80, 60), format: str = "PNG") -> bytes:
    """A picture of random patches, as a file."""
    draws = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(draws).resize(size, Image.Resampling.NEAREST).save(file, format)
    return file.getvalue()


@torch.inference_mode()
def whole_answer(folder: Path, token_ids: Sequence[int], pictures: Sequence[bytes], tokens: int) -> list[int]:
    """The tokens that the whole model gives in transformers, greedily."""
    model = _whole(folder)
    kind = model.config.model_type
    kind = "llava_siglip" if "siglip" in model.config.vision_config.model_type and kind == "llava" else kind
    opened = [Image.open(io.BytesIO(one)) for one in pictures]
    given: dict[str, Any] = {"input_ids": torch.tensor([list(token_ids)])}
    if opened:
        made = processor_of(kind)(opened, return_tensors="np")
        given["pixel_values"] = torch.from_numpy(np.stack(made["pixel_values"]))
        if kind.startswith("qwen"):
            given["image_grid_thw"] = torch.from_numpy(made["image_grid_thw"])
            given["mm_token_type_ids"] = (given["input_ids"] == ROW).int()
    if kind == "gemma3":
        given["token_type_ids"] = (given["input_ids"] == ROW).long()
    found = model.generate(**given, max_new_tokens=tokens, do_sample=False)
    return found[0].tolist()[len(token_ids) :]


@lru_cache(maxsize=2)
def _whole(folder: Path) -> Any:
    return t.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)


def _add_words(folder: Path, shown: str) -> None:
    path = str(folder / "tokenizer.json")
    told = json.loads(Path(path).read_text())
    vocabulary: dict[str, int] = told["model"]["vocab"]
    for token, word in WORDS.items():
        old = next(piece for piece, number in vocabulary.items() if number == token)
        vocabulary[word] = vocabulary.pop(old)
    Path(path).write_text(json.dumps(told))
    tokenizer = Tokenizer.from_file(path)
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in WORDS.values()])
    tokenizer.save(path)
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("WORD", shown))
