"""Whether ``tokenizer.json`` is all there is to a tokenizer, so that transformers need not be imported.

``AutoTokenizer`` chooses a class by the files' ``tokenizer_class`` and the model's type. Some classes load
the file as it is; others take vocabulary and merges from it and make the rest themselves, whatever the file
says. Here is written down which do what. Whatever is not known to come to the same goes through transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from tokenizers import pre_tokenizers

from shoal.models.text.tokenizer.files import TokenizerFiles

GENERIC = frozenset({"PreTrainedTokenizer", "TokenizersBackend"})
"""Classes, without ``Fast``, that load the file as it is."""
AS_STORED = frozenset(
    (
        "flex_olmo",
        "glm",
        "glm4",
        "glm4_moe",
        "granite",
        "granitemoe",
        "granitemoehybrid",
        "minimax_m2",
        "ministral",
        "ministral3",
        "mistral",
        "mixtral",
        "olmo2",
        "olmo3",
        "persimmon",
        "phi3",
        "phimoe",
        "stablelm",
    )
)
"""Types of models whose file is loaded as it is, whatever class the files name."""
FORCED = {
    "hyperclovax_vision_v2": "GPT2Tokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3_5": "Qwen3_5Tokenizer",
    "qwen3_5_moe": "Qwen3_5Tokenizer",
    "qwen3_5_moe_text": "Qwen3_5Tokenizer",
    "qwen4_exp": "Qwen3_5Tokenizer",
    "siglip2": "Siglip2Tokenizer",
}
"""Types of models that have one class, whatever class the files name."""
MISTRAL = frozenset({"mistral", "mistral3", "voxtral", "ministral", "pixtral"})
"""Types of models whose files transformers may repair when the vocabulary is large."""
MISTRAL_VOCABULARY = 100_000


@dataclass(frozen=True, slots=True)
class Stored:
    """How a file that is loaded as it is goes on."""

    defaults: Mapping[str, str] = field(default_factory=dict[str, str])
    """Special tokens of the class, by part, for those that the files leave out."""
    plain_special: bool = False
    """Whether special tokens lose their flags but for being special."""


def stored(files: TokenizerFiles, text: str) -> Stored | None:
    """How to go on with ``text``, the file, if it is all there is to the tokenizer; else ``None``."""
    kind = str(files.model.get("model_type", ""))
    name = FORCED.get(kind, files.class_name)
    data: dict[str, Any] = {}
    if "auto_map" in files.config or files.config.get("split_special_tokens"):
        return None
    if kind in MISTRAL and ((files.folder / "tekken.json").exists() or len(text) > 4 * MISTRAL_VOCABULARY):
        data = json.loads(text)
        if (files.folder / "tekken.json").exists() or _size(data) > MISTRAL_VOCABULARY:
            return None
    if name in GENERIC or (kind in AS_STORED and name):
        return Stored()
    if name == "LlamaTokenizer" and '"ByteLevel"' in text and kind not in FORCED:
        return Stored()
    rebuilt = _rebuilt(name, files.config)
    return rebuilt.stored if rebuilt is not None and rebuilt.is_in(data or json.loads(text)) else None


def _size(data: Mapping[str, Any]) -> int:
    return len(data["model"]["vocab"]) + len(data.get("added_tokens") or ())


@dataclass(frozen=True, slots=True)
class _Rebuilt:
    """What a class makes itself, as the file would say it."""

    stored: Stored
    normalizer: Mapping[str, Any] | None
    pre_tokenizer: Mapping[str, Any]
    decoder: Mapping[str, Any]
    fallback: bool
    """Whether bytes without a token are tokens like ``<0x0A>``."""

    def is_in(self, data: Mapping[str, Any]) -> bool:
        """Whether the file says just this."""
        model: Mapping[str, Any] = data["model"]
        plain = not (
            model.get("dropout")
            or model.get("continuing_subword_prefix")
            or model.get("end_of_word_suffix")
            or model.get("ignore_merges")
        )
        return (
            model.get("type") == "BPE"
            and plain
            and bool(model.get("byte_fallback")) == self.fallback
            and self._knows_all(model["vocab"])
            and _core(data.get("normalizer")) == self.normalizer
            and _core(data.get("pre_tokenizer")) == self.pre_tokenizer
            and _decoding(data.get("decoder")) == self.decoder
        )

    def _knows_all(self, vocab: Mapping[str, int]) -> bool:
        """Whether every byte has a token, so that none is ever unknown."""
        if self.fallback:
            return all(f"<0x{byte:02X}>" in vocab for byte in range(256))
        return all(letter in vocab for letter in pre_tokenizers.ByteLevel.alphabet())


BYTES = {"type": "ByteLevel"}
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN3_5_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TO_SPACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
_FROM_SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def _rebuilt(name: str, config: Mapping[str, Any]) -> _Rebuilt | None:
    prefix: object = config.get("add_prefix_space")
    match name:
        case "GPT2Tokenizer":
            split = BYTES | {"add_prefix_space": bool(prefix), "use_regex": True}
            end = _all_ends("unk_token", "bos_token", "eos_token")
            return _Rebuilt(Stored(end), None, split, BYTES, fallback=False)
        case "Qwen2Tokenizer" | "Qwen3_5Tokenizer":
            words = QWEN2_WORDS if name == "Qwen2Tokenizer" else QWEN3_5_WORDS
            regex = {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}
            split = BYTES | {"add_prefix_space": bool(prefix), "use_regex": False}
            steps = {"type": "Sequence", "pretokenizers": [regex, split]}
            end = _all_ends("unk_token", "eos_token", "pad_token")
            again = Stored(end, plain_special=True)
            return _Rebuilt(again, {"type": "NFC"}, steps, BYTES, fallback=False)
        case "LlamaTokenizer":
            begins = prefix is None or bool(prefix)
            scheme = "never" if not begins else "always" if config.get("legacy") else "first"
            split = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
            strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if begins else []
            special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
            return _Rebuilt(Stored(special), None, split, _pieces(strip), fallback=True)
        case "GemmaTokenizer":
            split = {
                "type": "Split",
                "pattern": {"String": " "},
                "behavior": "MergedWithPrevious",
                "invert": False,
            }
            special = {f"{part}_token": f"<{part}>" for part in ("unk", "bos", "eos", "pad", "mask")}
            return _Rebuilt(Stored(special), _FROM_SPACE, split, _pieces([]), fallback=True)
        case _:
            return None


def _all_ends(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "<|endoftext|>")


def _pieces(last: list[dict[str, Any]]) -> dict[str, Any]:
    steps = [_TO_SPACE, {"type": "ByteFallback"}, {"type": "Fuse"}, *last]
    return {"type": "Sequence", "decoders": steps}


def _core(part: Any) -> Any:
    """A part of the file without what only concerns offsets."""
    if isinstance(part, list):
        return [_core(step) for step in cast("list[Any]", part)]
    if isinstance(part, dict):
        fields = cast("dict[str, Any]", part)
        return {key: _core(value) for key, value in fields.items() if key != "trim_offsets"}
    return part


def _decoding(part: Any) -> Any:
    """A decoder without the flags that mean nothing to it."""
    kept = _core(part)
    return BYTES if isinstance(kept, dict) and kept.get("type") == "ByteLevel" else kept
