"""Text to token ids and back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from shoal.errors import BadWeights, UsageError
from shoal.models.loader import first_line
from shoal.models.template import TemplateRenderer

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
MAX_TEXT = 4 << 20
"""Characters. Longer text than any context holds would keep the tokenizer busy for minutes."""


class TextCodec:
    """A model's tokenizer and chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self.template = template or ""
        """The chat template's source; it tells in which markup the model writes calls and thoughts."""
        self.takes_tools = template is not None and "tools" in template
        """Whether the chat template knows what tools are."""
        self._renderer: TemplateRenderer | None = None
        if template is not None:
            special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
            self._renderer = TemplateRenderer(template, special)

    @classmethod
    def load(cls, path: Path) -> TextCodec:
        """The codec of a model's folder; no code that comes with it is run.

        Raises:
            BadWeights: the folder has no tokenizer that transformers understands.
        """
        try:
            tokenizer = cast(
                PreTrainedTokenizerBase,
                AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True),
            )
        except (ValueError, TypeError, KeyError, AttributeError, OSError, ImportError) as error:
            raise BadWeights(
                f"{path}: its tokenizer cannot be loaded ({first_line(error)})",
                check="whether tokenizer.json, or tokenizer.model, is there",
            ) from error
        template: object = tokenizer.chat_template
        if isinstance(template, dict):
            template = cast(dict[str, object], template).get("default")
        return cls(tokenizer, template if isinstance(template, str) else None)

    @property
    def has_template(self) -> bool:
        """Whether the model was made for chat."""
        return self._renderer is not None

    def encode(self, text: str, *, rendered: bool = False) -> list[int]:
        """Token ids of ``text``.

        Args:
            rendered: ``text`` comes from :meth:`render_chat`, which has put the special tokens at its
                beginning already.

        Raises:
            UsageError: the text is too long, or has lone surrogates.
        """
        if len(text) > MAX_TEXT:
            raise UsageError(f"{len(text)} characters of text are more than the {MAX_TEXT} that are taken")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"the text is not valid Unicode ({error})") from error
        return self._tokenizer.encode(text, add_special_tokens=not rendered)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ``token_ids``, without special tokens.

        Raises:
            UsageError: an id that cannot be one.
        """
        if any(not 0 <= token < 2**31 for token in token_ids):
            raise UsageError("token ids must be whole numbers from 0")
        return cast(
            str,
            self._tokenizer.decode(
                list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            ),
        )

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """What a grammar needs, to know every token's bytes."""
        return self._tokenizer

    def token_text(self, token: int) -> str:
        """The text of one token, special or not; U+FFFD where it is part of a character."""
        return cast(str, self._tokenizer.decode([token], clean_up_tokenization_spaces=False))

    def is_text(self, token: int) -> bool:
        """Whether ``token`` is text by itself: not special, nor one byte of a character without a token.

        A run of such bytes is decoded together or not at all, and special tokens do not end it.
        """
        name = str(self._tokenizer.convert_ids_to_tokens(token))
        return token not in self._special and BYTE_TOKEN.fullmatch(name) is None

    def special_token(self, word: str) -> int | None:
        """The special token that is written so, which :meth:`decode` leaves out; ``None`` for any other word."""
        token = self._tokenizer.get_vocab().get(word)
        added = self._tokenizer.added_tokens_decoder.get(token) if token is not None else None
        return token if added is not None and added.special else None

    def detokenizer(self) -> Detokenizer:
        """For one stream of tokens."""
        return Detokenizer(self)

    def render_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """The prompt for ``[{"role": "user", "content": "…"}, …]``; encode it with ``rendered=True``.

        Raises:
            UsageError: no messages, messages that the template refuses, or a model without a template.
            BadWeights: the template does not end in time.
        """
        if self._renderer is None:
            raise UsageError(
                "this model has no chat template",
                check="whether it is a chat model; give a plain prompt instead",
            )
        if not messages:
            raise UsageError("no messages")
        return self._renderer.render(messages, **options)


class Detokenizer:
    """Text as its tokens come. What is given out, put together, is what ``decode`` gives for all of them."""

    def __init__(self, codec: TextCodec) -> None:
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
