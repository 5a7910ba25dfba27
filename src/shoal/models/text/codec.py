"""A model's tokenizer and chat templates: text to token ids, conversations to prompts, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shoal.errors import UsageError
from shoal.models.text.chat_templates import ChatTemplates, EncodedPrompt, pictures_in
from shoal.models.text.detokenizer import Detokenizer
from shoal.models.text.pictures import ShownPictures
from shoal.models.text.tokenizer.apart import ApartTokenizer
from shoal.models.text.tokenizer.bytes import is_byte, token_bytes
from shoal.models.text.tokenizer.guard import Words
from shoal.models.text.tokenizer.tokenizer import ModelTokenizer

MAX_TEXT = 4 << 20
"""Characters. Longer text than any context holds would keep the tokenizer busy for minutes."""


class TextCodec:
    """A model's tokenizer and chat templates. From any thread."""

    def __init__(self, vocabulary: ModelTokenizer, templates: Mapping[str, str], words: Words) -> None:
        self._vocabulary = vocabulary
        self._special = frozenset(index for index, token in vocabulary.added.items() if token.special)
        self.template = "\n".join(templates.values())
        """The chat templates' source; it tells in which markup the model writes calls and thoughts."""
        self._chat = ChatTemplates(templates, vocabulary, words)

    @classmethod
    def load(cls, path: Path) -> TextCodec:
        """The codec of a model's folder. No code that comes with it is run; its tokenizer is, apart.

        Raises:
            BadWeights: the folder has no tokenizer that can be read.
        """
        tokenizer = ApartTokenizer(path)
        return cls(tokenizer, tokenizer.templates, tokenizer.words)

    @property
    def has_template(self) -> bool:
        """Whether the model was made for chat."""
        return self._chat.any

    @property
    def takes_tools(self) -> bool:
        """Whether a chat template knows what tools are."""
        return self._chat.takes_tools

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a plain text, in which control words are control tokens.

        Args:
            special: put what the model wants at the beginning of a text before it.

        Raises:
            UsageError: the text is too long, or has lone surrogates.
            BadWeights: the tokenizer fails on it, or takes too much time or memory.
            Busy: too many others wait for the tokenizer.
        """
        _check(text)
        return self._vocabulary.encode(text, special=special)

    def shown(self, text: str, pictures: ShownPictures) -> EncodedPrompt:
        """A plain text that has the model's word for a picture wherever it shows one. Raises as above."""
        whole, _ = pictures.put(text, ())
        ids, begins = pictures.spread(self.encode(whole))
        return EncodedPrompt(whole, ids, whole, begins)

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any] = MappingProxyType({}),
        pictures: ShownPictures | None = None,
    ) -> EncodedPrompt:
        """The prompt for a conversation, by the chat template; without one, the messages one after another.

        Only the template's own words become control tokens. What users, tools and assistants say is text,
        whatever it looks like.

        Args:
            messages: ``[{"role": "user", "content": "…"}, …]``; a content may be a list of parts: of text,
                and ``{"type": "image"}`` where it shows a picture.
            options: what the template may look at: ``tools``, ``documents``, ``enable_thinking``.
            pictures: what is shown, in the order of those parts.

        Raises:
            UsageError: no messages, messages that the template refuses or leaves out, or too much text.
            BadWeights: the template does not end in time, or the tokenizer fails.
            Busy: too many others wait for them.
        """
        if not messages:
            raise UsageError("no messages")
        if pictures is None and pictures_in(messages):
            raise UsageError(
                "a message has a part that is no text, and no picture is given for it",
                check="give the pictures, or leave such parts out",
            )
        return self._chat.prompt(messages, options, _check, pictures)

    def turn(
        self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any] = MappingProxyType({})
    ) -> str:
        """What the chat template makes of the last message, an assistant's, behind the prompt for the others:
        what the model would have written, with its calls and thoughts, and what ends its turn.

        Args:
            messages: as of :meth:`prompt`, two at least.

        Raises:
            UsageError: the template does not put it behind that prompt; or as :meth:`prompt`.
            BadWeights, Busy: as :meth:`prompt`.
        """
        before = self.prompt(messages[:-1], options).text
        whole = self._chat.told(messages, options)
        if not whole.startswith(before):
            raise UsageError(
                "the chat template does not write the assistant's turn behind the prompt for it",
                check="write what the model is to answer as content, in the model's own words",
            )
        return whole[len(before) :]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ``token_ids``, without special tokens.

        Raises:
            UsageError: an id that cannot be one.
            BadWeights: the tokenizer fails on them.
        """
        if any(not 0 <= token < 2**31 for token in token_ids):
            raise UsageError("token ids must be whole numbers from 0")
        return self._vocabulary.decode(token_ids, special=False)

    def all_bytes(self) -> list[bytes]:
        """The bytes of every token by its id, as a grammar needs them; nothing where they cannot be told."""
        if not self._vocabulary.tells_bytes:
            return []
        size = max(self._vocabulary.all().values(), default=-1) + 1
        return [self.token_bytes(token) for token in range(size)]

    def pieces(self) -> dict[int, str]:
        """Every token as its vocabulary writes it."""
        return {number: piece for piece, number in self._vocabulary.all().items()}

    @property
    def special_ids(self) -> frozenset[int]:
        """The tokens that :meth:`decode` leaves out."""
        return self._special

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """What ends an answer, as far as the tokenizer tells: its own end, and the template's for a turn."""
        found = self._chat.turn_ends()
        eos = self._vocabulary.named.get("eos_token")
        index = self._vocabulary.token_id(eos) if eos is not None else None
        return found if index is None else found | {index}

    @cached_property
    def answer_end(self) -> int | None:
        """What an answer is ended with: the template's end of a turn; where it has none, the tokenizer's."""
        eos = self._vocabulary.named.get("eos_token")
        index = self._vocabulary.token_id(eos) if eos is not None else None
        return next(iter(self._chat.turn_ends()), index)

    def token_text(self, token: int) -> str:
        """The text of one token, special or not; U+FFFD where it is part of a character."""
        return self._vocabulary.decode([token], special=True)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token, special or not: those of a whole text are its tokens' put together."""
        return token_bytes(self._vocabulary, token)

    def is_text(self, token: int) -> bool:
        """Whether ``token`` is text by itself: not special, nor one byte of a character without a token.

        A run of such bytes is decoded together or not at all, and special tokens do not end it.
        """
        return token not in self._special and not is_byte(self._vocabulary.piece(token))

    def special_token(self, word: str) -> int | None:
        """The special token written so, which :meth:`decode` leaves out; ``None`` for any other word."""
        token = self._vocabulary.token_id(word)
        return token if token in self._special else None

    def detokenizer(self) -> Detokenizer:
        """For one stream of tokens."""
        return Detokenizer(self)


def _check(text: str) -> None:
    if len(text) > MAX_TEXT:
        raise UsageError(f"{len(text)} characters of text are more than the {MAX_TEXT} that are taken")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the text is not valid Unicode ({error})") from error
