"""What a tokenizer of any kind can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from shoal.models.text.tokenizer.control import AddedWord


class ModelTokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def named(self) -> Mapping[str, str]:
        """Special tokens by the part that they play, as ``eos_token``."""
        ...

    @property
    def added(self) -> Mapping[int, AddedWord]:
        """Tokens beside those of the vocabulary, special or not, by id."""
        ...

    @property
    def byte_level(self) -> bool:
        """Whether each letter of its vocabulary stands for a byte."""
        ...

    @property
    def tells_bytes(self) -> bool:
        """Whether its vocabulary tells the bytes of every token, which a grammar needs."""
        ...

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids; with ``special``, those that the tokenizer puts around every text too."""
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

    def all(self) -> Mapping[str, int]:
        """Every token by how it is written."""
        ...
