"""What is asked of the process that holds a model's tokenizer, and what it answers: JSON, a line each."""

from __future__ import annotations

from typing import Any

import msgspec


class DescribeRequest(msgspec.Struct, tag="load", forbid_unknown_fields=True):
    """Tell all of the tokenizer that can be told once."""


class EncodeRequest(msgspec.Struct, tag="encode", forbid_unknown_fields=True):
    """Token ids of a text."""

    text: str
    special: bool
    own: list[tuple[int, int]] | None = None
    """Where control words are; ``None`` for wherever the tokenizer finds them."""


class DecodeRequest(msgspec.Struct, tag="decode", forbid_unknown_fields=True):
    """The text of tokens."""

    token_ids: list[int]
    special: bool


class FindRequest(msgspec.Struct, tag="find", forbid_unknown_fields=True):
    """Where a text has control words that are not touched by what is foreign."""

    text: str
    foreign: list[tuple[int, int]]


TokenizerQuestion = DescribeRequest | EncodeRequest | DecodeRequest | FindRequest


class TokenizerRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Any of them, and the folder in which the tokenizer lies: a process is lost, and another goes on."""

    folder: str
    asked: TokenizerQuestion


class AddedTokenText(msgspec.Struct, frozen=True):
    """A token beside those of the vocabulary."""

    content: str
    special: bool


class TokenizerDescription(msgspec.Struct, tag="loaded"):
    """A tokenizer but for what computes."""

    vocabulary: dict[str, int]
    """Token ids by how the vocabulary writes them."""
    others: dict[int, str]
    """How tokens are written whose id another token has too, or that have another text."""
    added: dict[int, AddedTokenText]
    named: dict[str, str]
    byte_level: bool
    tells_bytes: bool
    decoder: dict[str, Any] | None
    """The decoder as the file has it; ``None`` where the process itself must be asked."""
    joined: bool
    """Whether there is no decoder: tokens are joined with blanks."""
    templates: dict[str, str]
    control: dict[str, int]
    """Control words and their ids."""


class EncodedReply(msgspec.Struct, tag="ids"):
    token_ids: list[int]


class FoundReply(msgspec.Struct, tag="found"):
    spans: list[tuple[int, int]]


class DecodedReply(msgspec.Struct, tag="text"):
    text: str


class ErrorReply(msgspec.Struct, tag="refused"):
    """It cannot be done: the tokenizer is damaged, or fails on the text."""

    message: str
    check: str = ""


TokenizerReply = TokenizerDescription | EncodedReply | FoundReply | DecodedReply | ErrorReply
