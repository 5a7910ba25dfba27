"""A tokenizer of the ``tokenizers`` library: the whole of it lies in one JSON text."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from shoal.errors import BadWeights
from shoal.models.text.tokenizer.control import ControlWords, TextSpans, guarded_json
from shoal.models.text.tokenizer.files import TOKENIZER, TokenizerFiles, read_text
from shoal.models.text.tokenizer.stored import Stored, stored


class FastTokenizer:
    """Encodes and decodes as transformers does with the same tokenizer. From any thread."""

    def __init__(self, tokenizer: Tokenizer, named: Mapping[str, str]) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.named = named
        self.added: Mapping[int, AddedToken] = tokenizer.get_added_tokens_decoder()
        state: bytes = tokenizer.decoder.__getstate__() if tokenizer.decoder else b"null"
        self.decoder: dict[str, Any] | None = json.loads(state)
        """As the file states it."""
        self.byte_level = b'"ByteLevel"' in state
        self.tells_bytes = self.byte_level or b'"ByteFallback"' in state
        self._guarded: Tokenizer | None = None
        """Made when a conversation first needs it."""
        self._guarding = threading.Lock()

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids; with ``special``, those that the tokenizer puts around every text too."""
        return self._tokenizer.encode(text, add_special_tokens=special).ids

    def encode_guarded(self, text: str, own: TextSpans, words: ControlWords, *, special: bool) -> list[int]:
        """Token ids of ``text``, in which only the parts ``own`` are control words.

        Raises:
            BadWeights: the tokenizer cannot tell control words from text.
        """
        with self._guarding:
            if self._guarded is None:
                self._guarded = self._guard(words)
        return self._guarded.encode(words.signed(text, own), add_special_tokens=special).ids

    def decode(self, token_ids: Sequence[int], *, special: bool) -> str:
        """The text of tokens, with or without special ones."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=not special)

    def piece(self, token: int) -> str | None:
        """How the vocabulary writes a token."""
        return self._tokenizer.id_to_token(token)

    def token_id(self, word: str) -> int | None:
        """The token that is written so."""
        return self._tokenizer.token_to_id(word)

    def all(self) -> Mapping[str, int]:
        """Every token by how it is written."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def _guard(self, words: ControlWords) -> Tokenizer:
        made = Tokenizer.from_str(json.dumps(guarded_json(json.loads(self._tokenizer.to_str()), words)))
        for word, token in words.ids.items():
            if made.token_to_id(words.sign(word)) != token:
                raise BadWeights(
                    f"the tokenizer cannot tell {word!r} from text",
                    check="check the tokenizer's added tokens",
                )
        return made


def load_stored(files: TokenizerFiles) -> FastTokenizer | None:
    """The tokenizer of ``tokenizer.json``, where that is all there is to it; else ``None``.

    Raises:
        BadWeights: the file is damaged.
    """
    path = files.folder / TOKENIZER
    if not path.is_file():
        return None
    text = read_text(path)
    try:
        how = stored(files, text)
        if how is None:
            return None
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception
        raise _damaged(path, error) from error
    named = files.named(how.defaults)
    _add(tokenizer, files, named, how)
    variables = {name: token.content for name, token in named.items()}
    return FastTokenizer(tokenizer, variables | files.own())


def _add(tokenizer: Tokenizer, files: TokenizerFiles, named: Mapping[str, AddedToken], how: Stored) -> None:
    """Add what the config knows and the file does not, in the order in which transformers does."""
    there = tokenizer.get_added_tokens_decoder().values()
    known = {repr(token) for token in there}
    new = [token for _, token in sorted(files.added().items()) if repr(token) not in known]
    words = {token.content for token in (*there, *new)}
    special = [*named.values(), *files.extra()]
    new += [token for token in special if token.content not in words]
    parts = {token.content for token in named.values()}
    for token in new:
        token.special = token.special or token.content in parts
    tokenizer.add_tokens(new)
    if how.plain_special:
        tokenizer.add_tokens([AddedToken(token.content, special=True) for token in special])


def _damaged(path: Path, error: Exception) -> BadWeights:
    first: Any = (str(error).splitlines() or [type(error).__name__])[0]
    return BadWeights(
        f"{path}: not a tokenizer that can be read ({first[:200]})", check="fetch the file again"
    )
