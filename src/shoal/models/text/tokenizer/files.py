"""What the files beside ``tokenizer.json`` say: special tokens, added tokens, chat templates, the class.

They are read as transformers reads them (``PreTrainedTokenizerBase._from_pretrained``), without importing it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken

from shoal.errors import BadWeights
from shoal.models.checkpoint.json_file import SizeLimit, read_object

MAX_FILE = 64 << 20
"""Bytes of a tokenizer's file that is read."""
BESIDE_TOKENIZER = SizeLimit(16 << 20, 1_000_000)
"""For what lies beside a tokenizer. Gemma's 6,400 added tokens are 1.2 MB of 50,000 values."""
TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
ID = re.compile("[0-9]{1,10}")
FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
"""What the library knows of a token. It writes to the standard output of what else it is told."""
TEMPLATES = "additional_chat_templates"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that have a part to play."""


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The settings of a tokenizer, its templates among them."""

    folder: Path
    config: Mapping[str, Any]
    """``tokenizer_config.json``, with what older files beside it say."""
    model: Mapping[str, Any]
    """The model's ``config.json``."""
    templates: Mapping[str, str]
    """Chat templates by name; a single one is called ``default``."""

    @property
    def class_name(self) -> str:
        """The class that the tokenizer was saved from, without ``Fast``; empty where nothing says it."""
        found: object = self.config.get("tokenizer_class") or self.model.get("tokenizer_class")
        return found.removesuffix("Fast") if isinstance(found, str) else ""

    def named(self, defaults: Mapping[str, str]) -> dict[str, AddedToken]:
        """The tokens that have a part to play, by its name.

        Args:
            defaults: those of the class, for names that the files leave out.
        """
        found: dict[str, AddedToken] = {}
        for name in NAMED:
            token = self.config.get(name, defaults.get(name))
            if token is not None:
                found[name] = as_token(token, special=True)
        return found

    def extra(self) -> list[AddedToken]:
        """Special tokens without such a name."""
        found: list[AddedToken] = []
        for key in ("extra_special_tokens", "additional_special_tokens"):
            listed: object = self.config.get(key) or []
            if isinstance(listed, dict):
                listed = list(cast("dict[str, object]", listed).values())
            tokens = cast("list[object]", listed) if isinstance(listed, list) else [listed]
            found += [as_token(token, special=True) for token in tokens]
            if found:
                break
        return found + [as_token(word, special=True) for word in self.own().values()]

    def own(self) -> dict[str, str]:
        """Special tokens with a part that only this model knows, as ``image_token``."""
        return {
            name: word
            for name, word in self.config.items()
            if name.endswith("_token") and name not in NAMED and isinstance(word, str)
        }

    def added(self) -> dict[int, AddedToken]:
        """Tokens by id that the config adds to the vocabulary.

        Raises:
            BadWeights: they are not written as such.
        """
        listed: object = self.config.get("added_tokens_decoder") or {}
        tokens = cast("dict[str, object]", listed) if isinstance(listed, dict) else {"": listed}
        strange = [index for index in tokens if ID.fullmatch(index) is None]
        if strange:
            raise BadWeights(f"the tokenizer has an added token whose id is {strange[0][:40]!r}")
        return {int(index): as_token(token, special=False) for index, token in tokens.items()}


def read_files(folder: Path) -> TokenizerFiles:
    """Read what lies beside a tokenizer.

    Raises:
        BadWeights: a file is no JSON object, or too large.
    """
    config = _object(folder / CONFIG)
    if "added_tokens_decoder" not in config:
        for name, value in _object(folder / "special_tokens_map.json").items():
            config[name] = value
    return TokenizerFiles(folder, config, _object(folder / "config.json"), _templates(folder, config))


def as_token(value: object, *, special: bool) -> AddedToken:
    """A token as the files write it: its text, or an object with its flags.

    Raises:
        BadWeights: it is neither.
    """
    if isinstance(value, str):
        return AddedToken(value, special=special)
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        flags = {name: flag for name, flag in fields.items() if name in FLAGS}
        flags.setdefault("special", special)
        try:
            return AddedToken(**flags)
        except TypeError as error:
            raise BadWeights(f"the tokenizer has a token with strange flags ({error})") from error
    raise BadWeights(f"the tokenizer names {str(value)[:40]!r} where a token should be")


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name: files of their own first, then the config's, then a processor's."""
    found: dict[str, str] = {}
    if (folder / TEMPLATE).is_file():
        found["default"] = read_text(folder / TEMPLATE)
    for file in sorted((folder / TEMPLATES).glob("*.jinja")):
        found[file.stem] = read_text(file)
    return found or _listed(config) or _listed(_object(folder / "chat_template.json"))


def _listed(config: Mapping[str, Any]) -> dict[str, str]:
    """The templates of a config: one, or several by name."""
    value: object = config.get("chat_template")
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list):
        pairs = [
            cast("dict[str, object]", item) for item in cast("list[object]", value) if isinstance(item, dict)
        ]
        value = {str(pair.get("name")): pair.get("template") for pair in pairs}
    named = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    return {name: template for name, template in named.items() if isinstance(template, str)}


def _object(file: Path) -> dict[str, Any]:
    """A file's JSON object; an empty one where there is no such file."""
    return read_object(file, BESIDE_TOKENIZER) if file.is_file() else {}


def read_text(file: Path) -> str:
    """A file of a tokenizer.

    Raises:
        BadWeights: it is too large, or not UTF-8.
    """
    if file.stat().st_size > MAX_FILE:
        raise BadWeights(f"{file}: larger than the {MAX_FILE >> 20} MiB that we read")
    try:
        return file.read_text(encoding="utf-8-sig")  # editors on Windows put a byte order mark before it
    except UnicodeDecodeError as error:
        raise BadWeights(f"{file}: not UTF-8 text ({error})", check="fetch the file again") from error
