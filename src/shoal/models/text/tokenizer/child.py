"""The process that holds a model's tokenizer. Run as a module.

A tokenizer is a program that comes with a model: its regular expressions may need hours, its normalizer may
make gigabytes of a letter, and the library panics or aborts on many that make no sense. All of it is here.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from shoal.errors import ShoalError
from shoal.models.text.tokenizer.fast import FastTokenizer, load_stored
from shoal.models.text.tokenizer.files import read_files
from shoal.models.text.tokenizer.guard import GuardedTokenizer
from shoal.models.text.tokenizer.messages import (
    AddedTokenText,
    DecodedReply,
    DescribeRequest,
    EncodedReply,
    EncodeRequest,
    ErrorReply,
    FindRequest,
    FoundReply,
    TokenizerDescription,
    TokenizerReply,
    TokenizerRequest,
)
from shoal.models.untrusted.limits import first_to_go, limit_memory

if TYPE_CHECKING:
    from shoal.models.text.tokenizer.slow import PythonTokenizer

MEMORY = 3 << 30
"""Bytes of address space beyond what the imports took. The largest tokenizers take 1 GiB, four million
characters of text another."""
LONGEST_S = 120
"""For one answer. Who asks has a shorter deadline and kills us; this is for when they were killed."""


class TokenizerServer:
    """The tokenizer of one folder."""

    def __init__(self, folder: Path) -> None:
        self._files = read_files(folder)
        stored = load_stored(self._files)
        if stored is None:
            limit_memory(None)
            from shoal.models.text.tokenizer.slow import load_with_transformers  # noqa: PLC0415 - with torch, which is large

            limit_memory(MEMORY)
            stored = load_with_transformers(folder)
        self._vocabulary: FastTokenizer | PythonTokenizer = stored
        self._words = GuardedTokenizer(stored, "\n".join(self._files.templates.values()))

    def answer(self, request: TokenizerRequest) -> TokenizerReply:
        asked, vocabulary = request.asked, self._vocabulary
        if isinstance(asked, DescribeRequest):
            return self._loaded()
        if isinstance(asked, EncodeRequest):
            if asked.own is None:
                return EncodedReply(vocabulary.encode(asked.text, special=asked.special))
            return EncodedReply(self._words.encode(asked.text, asked.own, special=asked.special))
        if isinstance(asked, FindRequest):
            return FoundReply(self._words.own(asked.text, asked.foreign))
        return DecodedReply(vocabulary.decode(asked.token_ids, special=asked.special))

    def _loaded(self) -> TokenizerDescription:
        vocabulary = self._vocabulary
        by_word = vocabulary.all()
        inverse = {index: word for word, index in by_word.items()}
        pieces = {index: vocabulary.piece(index) for index in inverse.keys() | vocabulary.added.keys()}
        decoder = vocabulary.decoder if isinstance(vocabulary, FastTokenizer) else None
        return TokenizerDescription(
            vocabulary=dict(by_word),
            others={i: piece for i, piece in pieces.items() if piece is not None and inverse.get(i) != piece},
            added={i: AddedTokenText(token.content, token.special) for i, token in vocabulary.added.items()},
            named=dict(vocabulary.named),
            byte_level=vocabulary.byte_level,
            tells_bytes=vocabulary.tells_bytes,
            decoder=decoder,
            joined=isinstance(vocabulary, FastTokenizer) and decoder is None,
            templates=dict(self._files.templates),
            control=dict(self._words.ids),
        )


def main() -> None:
    first_to_go()
    limit_memory(MEMORY)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries print, and what they print is no answer
    decoder = msgspec.json.Decoder(TokenizerRequest)
    holder: TokenizerServer | None = None
    for line in sys.stdin.buffer:
        faulthandler.dump_traceback_later(LONGEST_S, exit=True)
        broken = False
        try:
            request = decoder.decode(line)
            holder = holder or TokenizerServer(Path(request.folder))
            reply = msgspec.json.encode(holder.answer(request))
        except ShoalError as error:
            reply = msgspec.json.encode(ErrorReply(error.message, error.check))
        except BaseException as error:  # noqa: BLE001 - also panics of Rust, which are no Exception
            told = (str(error).splitlines() or [""])[0][:200].encode("utf-8", "replace").decode()
            reply = msgspec.json.encode(ErrorReply(f"{type(error).__name__}: {told}"))
            broken = True
        answers.write(reply + b"\n")
        answers.flush()
        if broken:
            return  # what state it is in nobody knows
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
