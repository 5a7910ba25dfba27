"""A tokenizer whose own code runs in a process apart, and of which the rest, its vocabulary, is here.

To encode is to ask that process: once a request. To decode, once or twice a token, needs the vocabulary and a
decoder; where the file names a decoder that is known to be harmless, it is made and used here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from shoal.errors import BadWeights
from shoal.models.text.tokenizer.control import TextSpans
from shoal.models.text.tokenizer.decoders import harmless, join_with_blanks
from shoal.models.text.tokenizer.messages import (
    AddedTokenText,
    DecodedReply,
    DecodeRequest,
    DescribeRequest,
    EncodedReply,
    EncodeRequest,
    ErrorReply,
    FindRequest,
    FoundReply,
    TokenizerDescription,
    TokenizerQuestion,
    TokenizerReply,
    TokenizerRequest,
)
from shoal.models.untrusted.child import Child, Ended

PROGRAM = "shoal.models.text.tokenizer.child"
LOADS_WITHIN_S = 60.0
"""The start of the process included and, where it needs transformers, its import: seconds."""
ENCODES_WITHIN_S = 5.0
CHARACTERS_S = 100_000
"""Characters that are encoded in a second. A slow one does ten times as many."""
MAX_REPLY = 192 << 20
"""Bytes. The largest vocabularies of today come to 10 MB."""
MAX_TOKENS = 1 << 22
"""Token ids are below it: tables by id are made of them. Vocabularies of today have up to 262,144."""
MAX_PIECE = 1 << 12
"""Characters of one token, since a model may say it any number of times. Honest ones have up to 1,024."""
MAX_DECODED = 64 << 20
"""Characters. A million tokens of honest length come to 4 MiB."""
MAX_ADDED = 1 << 17
"""Tokens beside those of the vocabulary: every text is searched for them. Gemma has 6,400."""

_Reply = TypeVar("_Reply", TokenizerDescription, EncodedReply, DecodedReply, FoundReply)


class ApartTokenizer:
    """A model's tokenizer. From any thread."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            BadWeights: there is none, or it is damaged, too large, or does not load in time.
        """
        self._process = _Process(folder)
        loaded = self._process.ask(DescribeRequest(), TokenizerDescription, 0)
        _check(loaded, folder)
        self.words = ApartWords(loaded.control, self._process)
        """Its control words."""
        self.templates: Mapping[str, str] = loaded.templates
        self.named: Mapping[str, str] = loaded.named
        self.added: Mapping[int, AddedTokenText] = loaded.added
        self.byte_level = loaded.byte_level
        self.tells_bytes = loaded.tells_bytes
        self._ids = loaded.vocabulary
        self._pieces = {index: word for word, index in loaded.vocabulary.items()} | loaded.others
        self._special = {token.content for token in loaded.added.values() if token.special}
        self._decoder = join_with_blanks if loaded.joined else harmless(loaded.decoder)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids; with ``special``, those that the tokenizer puts around every text too.

        Raises:
            BadWeights: the tokenizer fails on the text, or takes too much time or memory for it.
            Busy: too many others wait for it.
        """
        return self._process.encode(EncodeRequest(text, special))

    def decode(self, token_ids: Sequence[int], *, special: bool) -> str:
        """The text of tokens, with or without special ones.

        Raises:
            BadWeights: it is longer than any honest text, or as for :meth:`encode`.
            Busy: too many others wait for it.
        """
        if self._decoder is None:
            asked = DecodeRequest(list(token_ids), special)
            return self._process.ask(asked, DecodedReply, len(token_ids)).text
        pieces = [piece for token in token_ids if (piece := self._pieces.get(token)) is not None]
        if len(pieces) > MAX_DECODED // MAX_PIECE and sum(map(len, pieces)) > MAX_DECODED:
            raise self._process.failed(
                f"{len(pieces)} tokens come to more than {MAX_DECODED >> 20} MiB of text"
            )
        return self._decoder(pieces if special else [piece for piece in pieces if piece not in self._special])

    def piece(self, token: int) -> str | None:
        """How the vocabulary writes a token."""
        return self._pieces.get(token)

    def token_id(self, word: str) -> int | None:
        """The token that is written so."""
        return self._ids.get(word)

    def all(self) -> Mapping[str, int]:
        """Every token by how it is written."""
        return self._ids

    @property
    def pid(self) -> int | None:
        """The process as it is now, if there is one."""
        return self._process.child.pid


class ApartWords:
    """The control words of such a tokenizer. With some models' words a text may need long to be searched."""

    def __init__(self, ids: Mapping[str, int], process: _Process) -> None:
        self.ids = ids
        self._process = process

    def are_in(self, text: str) -> bool:
        return bool(self.found(text))

    def found(self, text: str) -> list[tuple[int, int]]:
        return self.own(text, [])

    def own(self, text: str, foreign: TextSpans) -> list[tuple[int, int]]:
        asked = FindRequest(text, [(start, end) for start, end in foreign])
        return self._process.ask(asked, FoundReply, len(text)).spans

    def encode(self, text: str, own: TextSpans, *, special: bool) -> list[int]:
        return self._process.encode(EncodeRequest(text, special, [(start, end) for start, end in own]))


class _Process:
    """What can be asked of the process, in its own words."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self.child = Child(["-m", PROGRAM], longest_answer=MAX_REPLY, starts_within_s=LOADS_WITHIN_S)

    def encode(self, asked: EncodeRequest) -> list[int]:
        ids = self.ask(asked, EncodedReply, len(asked.text)).token_ids
        if ids and not 0 <= min(ids) <= max(ids) < MAX_TOKENS:
            raise self.failed(f"it made a token {max(ids)}")
        return ids

    def ask(
        self,
        asked: TokenizerQuestion,
        wanted: type[_Reply],
        size: int,
    ) -> _Reply:
        """The answer to something about so many characters or tokens.

        Raises:
            BadWeights: there is none in time, or the tokenizer fails.
            Busy: too many others wait for it.
        """
        request = msgspec.json.encode(TokenizerRequest(self._folder, asked))
        try:
            line = self.child.ask(request, ENCODES_WITHIN_S + size / CHARACTERS_S)
            reply: TokenizerReply = msgspec.json.decode(line, type=TokenizerReply)
        except Ended as error:
            raise self.failed(str(error)) from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise self.failed("its process answers nonsense") from error
        if isinstance(reply, ErrorReply):
            raise BadWeights(reply.message, check=reply.check) if reply.check else self.failed(reply.message)
        if not isinstance(reply, wanted):
            raise self.failed("its process answers something else")
        return reply

    def failed(self, why: str) -> BadWeights:
        return BadWeights(
            f"{self._folder}: its tokenizer fails: {why}",
            check="check the text, and that the model comes from a source you trust",
        )


def _check(loaded: TokenizerDescription, folder: Path) -> None:
    """Raises BadWeights for a vocabulary that no honest model has."""
    ids = [*loaded.vocabulary.values(), *loaded.others, *loaded.added, 0]
    texts = (loaded.vocabulary, loaded.others.values(), [token.content for token in loaded.added.values()])
    longest = max((len(text) for some in texts for text in some), default=0)
    if longest > MAX_PIECE or max(ids) >= MAX_TOKENS or min(ids) < 0 or len(loaded.added) > MAX_ADDED:
        raise BadWeights(
            f"{folder}: its tokenizer has ids up to {max(ids)}, tokens of up to {longest} characters and "
            f"{len(loaded.added)} added ones; {MAX_TOKENS}, {MAX_PIECE} and {MAX_ADDED} are the most",
            check="check that the model comes from a source you trust",
        )
