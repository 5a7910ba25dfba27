"""Decoders of ``tokenizers`` that can be used in this process, whoever wrote the file that names them.

Each is linear in what it decodes, makes at most one character more of each, and has no way to panic: no
regular expressions, no replacing by more, no cutting off more than there may be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import msgspec
from tokenizers import decoders

DecodeFunction = Callable[[list[str]], str]
MAX_STEPS = 8
MAX_TEXT = 16
"""Characters of a prefix or a text to be replaced."""


class _ByteLevel(msgspec.Struct, tag="ByteLevel"):
    def made(self) -> decoders.Decoder:
        return decoders.ByteLevel()


class _ByteFallback(msgspec.Struct, tag="ByteFallback"):
    def made(self) -> decoders.Decoder:
        return decoders.ByteFallback()


class _Fuse(msgspec.Struct, tag="Fuse"):
    def made(self) -> decoders.Decoder:
        return decoders.Fuse()


class _String(msgspec.Struct, forbid_unknown_fields=True):
    String: str


class _Replace(msgspec.Struct, tag="Replace"):
    pattern: _String
    content: str

    def made(self) -> decoders.Decoder | None:
        old = self.pattern.String
        fits = 0 < len(old) <= MAX_TEXT and len(self.content) <= len(old)
        return decoders.Replace(old, self.content) if fits else None


class _Strip(msgspec.Struct, tag="Strip"):
    content: str
    start: int
    stop: int

    def made(self) -> decoders.Decoder | None:
        # With another stop the library counts below zero at short tokens.
        fits = len(self.content) == 1 and 0 <= self.start <= MAX_TEXT and self.stop == 0
        return decoders.Strip(self.content, self.start, 0) if fits else None


class _Metaspace(msgspec.Struct, tag="Metaspace"):
    replacement: str
    prepend_scheme: str = "always"
    split: bool = True

    def made(self) -> decoders.Decoder | None:
        if len(self.replacement) != 1 or self.prepend_scheme not in ("always", "first", "never"):
            return None
        return decoders.Metaspace(self.replacement, self.prepend_scheme, self.split)


class _WordPiece(msgspec.Struct, tag="WordPiece"):
    prefix: str
    cleanup: bool

    def made(self) -> decoders.Decoder | None:
        return decoders.WordPiece(self.prefix, self.cleanup) if 0 < len(self.prefix) <= MAX_TEXT else None


_Step = _ByteLevel | _ByteFallback | _Fuse | _Replace | _Strip | _Metaspace | _WordPiece


class _Sequence(msgspec.Struct, tag="Sequence"):
    decoders: list[_Step]

    def made(self) -> decoders.Decoder | None:
        steps = [step.made() for step in self.decoders]
        if not 0 < len(steps) <= MAX_STEPS or None in steps:
            return None
        return decoders.Sequence(cast("list[decoders.Decoder]", steps))


def harmless(stated: dict[str, Any] | None) -> DecodeFunction | None:
    """The decoder that a file states, to be called with tokens as they are written; ``None`` for others."""
    try:
        made = msgspec.convert(stated, _Step | _Sequence).made()
    except msgspec.ValidationError:
        return None
    return made.decode if made is not None else None


def join_with_blanks(pieces: list[str]) -> str:
    """What the library makes of tokens without a decoder."""
    return " ".join(pieces)
