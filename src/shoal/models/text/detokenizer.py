"""Text as its tokens come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Decoder(Protocol):
    """What a stream of tokens is decoded by: a :class:`shoal.models.text.codec.TextCodec`."""

    def decode(self, token_ids: Sequence[int]) -> str: ...

    def is_text(self, token: int) -> bool: ...


class Detokenizer:
    """Text as its tokens come. What is given out, put together, is what ``decode`` gives for all of them."""

    def __init__(self, codec: Decoder) -> None:
        self._codec = codec
        self._ids: list[int] = []
        self._start = 0
        """Tokens before it are given out and need not be looked at again."""
        self._seen = 0
        """Tokens before it are given out; those between the two are the context of the next."""
        self._given = ""

    def push(self, token: int) -> str:
        """The text that is certain now. Empty while a character is incomplete."""
        self._ids.append(token)
        if not self._codec.is_text(token):
            return ""
        before = self._codec.decode(self._ids[self._start : self._seen])
        after = self._codec.decode(self._ids[self._start :])
        # An incomplete character decodes to U+FFFD until its last byte has come.
        if len(after) <= len(before) or after.endswith("\ufffd") or not after.startswith(before):
            return ""
        self._start, self._seen = self._seen, len(self._ids)
        self._given += after[len(before) :]
        return after[len(before) :]

    def finish(self) -> str:
        """What was held back, at the end of the stream."""
        whole = self._codec.decode(self._ids)
        rest = whole[len(self._given) :] if whole.startswith(self._given) else ""
        self._given += rest
        return rest
