"""The bytes of single tokens. A token may be part of a character, which has no text of its own."""

from __future__ import annotations

import re

from shoal.models.text.tokenizer.tokenizer import ModelTokenizer

BYTE = re.compile("<0x([0-9A-F]{2})>")
"""How vocabularies of SentencePiece write a byte that has no better token."""


def _byte_letters() -> dict[str, int]:
    """The letters that stand for bytes in byte-level vocabularies, as GPT-2 chose them: printable ones for
    themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(rest)}


LETTERS = _byte_letters()


def is_byte(piece: str | None) -> bool:
    """Whether a token, as its vocabulary writes it, is one byte without a better token."""
    return piece is not None and BYTE.fullmatch(piece) is not None


def token_bytes(vocabulary: ModelTokenizer, token: int) -> bytes:
    """A token's bytes; none for an id without a token."""
    piece = vocabulary.piece(token)
    if piece is None:
        return b""
    if token in vocabulary.added:
        return piece.encode()
    if vocabulary.byte_level:
        return b"".join(bytes([LETTERS[x]]) if x in LETTERS else x.encode() for x in piece)
    if (match := BYTE.fullmatch(piece)) is not None:
        return bytes([int(match[1], 16)])
    return piece.replace("▁", " ").encode()
