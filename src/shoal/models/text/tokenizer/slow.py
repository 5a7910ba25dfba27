"""Tokenizers that need transformers: without ``tokenizer.json``, or of classes that do more than it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken

from shoal.errors import BadWeights
from shoal.models.seam.tokenizer import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from shoal.models.text.tokenizer.control import ControlWords, TextSpans
from shoal.models.text.tokenizer.fast import FastTokenizer

REFUSED = (ValueError, TypeError, KeyError, AttributeError, OSError, ImportError)
"""What transformers raises on tokenizers that it cannot make sense of."""


class PythonTokenizer:
    """A tokenizer of transformers that is made of Python."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        self.named: Mapping[str, str] = _named(tokenizer)
        self.byte_level = hasattr(tokenizer, "byte_decoder")
        self.tells_bytes = self.byte_level
        self.added: Mapping[int, AddedToken] = dict(self._tokenizer.added_tokens_decoder)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids; with ``special``, those that the tokenizer puts around every text too."""
        return cast("list[int]", self._tokenizer.encode(text, add_special_tokens=special))

    def encode_guarded(self, text: str, own: TextSpans, words: ControlWords, *, special: bool) -> list[int]:
        """Token ids of ``text``, in which only the parts ``own`` are control words.

        Such a tokenizer encodes what lies between two of them by itself, and so do we.

        Raises:
            BadWeights: the tokenizer cannot tell control words from text.
        """
        ids: list[int] = []
        place = 0
        for start, end in (*own, (len(text), len(text))):
            between: list[int] = self._tokenizer.encode(
                text[place:start], add_special_tokens=False, split_special_tokens=True
            )
            if words.ids.keys() & {self.piece(token) for token in between} - {self.named.get("unk_token")}:
                raise BadWeights("the tokenizer cannot tell control words from text")
            ids += between
            ids += [words.ids[text[start:end]]] if end > start else []
            place = end
        return self._tokenizer.build_inputs_with_special_tokens(ids) if special else ids

    def decode(self, token_ids: Sequence[int], *, special: bool) -> str:
        """The text of tokens, with or without special ones."""
        return cast(
            str,
            self._tokenizer.decode(
                list(token_ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False
            ),
        )

    def piece(self, token: int) -> str | None:
        """How the vocabulary writes a token."""
        found: object = self._tokenizer.convert_ids_to_tokens(token)
        return found if isinstance(found, str) else None

    def token_id(self, word: str) -> int | None:
        """The token that is written so."""
        return self.all().get(word)

    def all(self) -> Mapping[str, int]:
        """Every token by how it is written."""
        return cast("dict[str, int]", self._tokenizer.get_vocab())


def load_with_transformers(folder: Path) -> FastTokenizer | PythonTokenizer:
    """A folder's tokenizer as ``AutoTokenizer`` makes it; no code that comes with it is run.

    Raises:
        BadWeights: there is none, or transformers does not understand it.
    """
    if not any(folder.glob("*token*")) and not any(folder.glob("vocab*")):
        raise BadWeights(
            f"{folder}: it has no tokenizer",
            check="check that tokenizer.json or tokenizer.model is in the folder",
        )
    try:
        tokenizer = cast(
            PreTrainedTokenizerBase,
            AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True),
        )
    except REFUSED as error:
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise BadWeights(
            f"{folder}: its tokenizer cannot be loaded ({first})",
            check="check that tokenizer.json or tokenizer.model is in the folder",
        ) from error
    if isinstance(tokenizer, PreTrainedTokenizerFast) and not _in_python(type(tokenizer)):
        return FastTokenizer(tokenizer.backend_tokenizer, _named(tokenizer))
    return PythonTokenizer(tokenizer)


def _in_python(cls: type[PreTrainedTokenizerFast]) -> bool:
    """Whether a class encodes or decodes otherwise than the library that it wraps."""
    steps = ("encode", "decode", "_encode_plus", "_decode", "__call__")
    return any(getattr(cls, step, None) is not getattr(PreTrainedTokenizerFast, step, None) for step in steps)


def _named(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    return {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
