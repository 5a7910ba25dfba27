"""What a tokenizer of any kind can do, and which kind a folder has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from tokenizers import AddedToken

from shoal.errors import BadWeights
from shoal.models.text.control import ControlWords, Parts
from shoal.models.text.fast import load_stored
from shoal.models.text.files import TokenizerFiles


class Vocabulary(Protocol):
    """Text to token ids and back."""

    @property
    def named(self) -> Mapping[str, str]:
        """Special tokens by the part that they play, as ``eos_token``."""
        ...

    @property
    def added(self) -> Mapping[int, AddedToken]:
        """Tokens beside those of the vocabulary, special or not, by id."""
        ...

    @property
    def byte_level(self) -> bool:
        """Whether each letter of its vocabulary stands for a byte."""
        ...

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids; with ``special``, those that the tokenizer puts around every text too."""
        ...

    def encode_guarded(self, text: str, own: Parts, words: ControlWords, *, special: bool) -> list[int]:
        """Token ids of ``text``, in which only the parts ``own`` are control words."""
        ...

    def decode(self, token_ids: Sequence[int], *, special: bool) -> str:
        """The text of tokens, with or without special ones."""
        ...

    def piece(self, token: int) -> str | None:
        """How the vocabulary writes a token."""
        ...

    def token_id(self, word: str) -> int | None:
        """The token that is written so."""
        ...

    def serialized(self) -> str | None:
        """All of it as the JSON of ``tokenizers``; ``None`` for one that is made otherwise."""
        ...


def load_vocabulary(files: TokenizerFiles) -> Vocabulary:
    """The tokenizer of a folder: by ``tokenizers`` alone where that is exact, else by transformers.

    Raises:
        BadWeights: there is none, or it is damaged.
    """
    found = load_stored(files)
    if found is not None:
        return found
    if not any(files.folder.glob("*token*")) and not any(files.folder.glob("vocab*")):
        raise BadWeights(
            f"{files.folder}: it has no tokenizer",
            check="whether tokenizer.json, or tokenizer.model, is there",
        )
    from shoal.models.text.slow import load_with_transformers  # noqa: PLC0415 - imports transformers

    return load_with_transformers(files.folder)
