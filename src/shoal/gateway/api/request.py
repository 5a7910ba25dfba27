"""What a request asks for, whichever route it came by: prompts of token ids and how to continue them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import trio

from shoal.client.sampling import Sampling
from shoal.client.vision.look import Picture
from shoal.client.vision.pictures import PlacedPicture
from shoal.errors import BadWeights, PromptTooLong, UnsupportedModel, UsageError
from shoal.gateway.api.images import GivenImage, images_in, together, without_images
from shoal.gateway.errors import BadRequest
from shoal.gateway.markup.reader import AnswerSyntax
from shoal.gateway.markup.tools import Calling, as_text
from shoal.gateway.models import Servable
from shoal.models.text.chat_templates import ChatMessage, EncodedPrompt
from shoal.models.text.codec import TextCodec
from shoal.models.text.detokenizer import Detokenizer
from shoal.models.text.pictures import ShownPictures
from shoal.models.text.prompt import ChatPrompt, encode_prompt
from shoal.types import ProtectionLevel

DEFAULT_TOKENS = 4096
"""An answer's length where the client sets none."""
UNCHECKED: tuple[ProtectionLevel, ...] = ("fast", "attested")
"""The levels at which nothing is done once an answer is complete."""
LEAST_TOKENS = 1024
"""The same where the hops have no plenty of room: each reserves KV for all of an answer at once."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt, checked: what is wrong with it was said before it came to this."""

    model: Servable
    prompt: tuple[int, ...]
    max_tokens: int
    """0 where the prompt alone is to be scored."""
    sampling: Sampling
    open_ended: bool = False
    """Whether the client has set no limit, so that the answer may be given less room."""
    choices: int = 1
    stop: tuple[str, ...] = ()
    grammar: str | None = None
    syntax: AnswerSyntax | None = None
    """How a conversation's answer is parted into reasoning, text and calls."""
    relaxed: tuple[str, ...] = ()
    """Whose schemas were relaxed, since no answer can be held to the whole of them."""
    why: tuple[str, ...] = ()
    """Which keywords were left out of them."""
    echo: bool = False
    """Whether the prompt's own tokens are to be scored too."""
    turns: bool = False
    """Whether it is a conversation: its next turn will begin with the same tokens."""
    salt: str = ""
    receipts: bool = False
    """Whether the hops are to sign what they have done."""
    protect: ProtectionLevel | None = None
    """From hops that compute something else; ``None`` as its caller or the gateway has it."""
    speculate: bool | None = None
    """Whether tokens are guessed ahead; ``None`` as the gateway is set."""
    draft: bool = True
    """Whether the gateway's draft model guesses too."""
    images: tuple[Picture, ...] = ()
    """What it shows."""
    placed: tuple[PlacedPicture, ...] = ()
    """Where among the prompt's tokens each of them stands."""

    @property
    def checked(self) -> bool:
        """Whether hops sign what they have done for it, or it is audited: who answers it has resolved
        ``protect``."""
        return self.receipts or self.protect not in UNCHECKED

    @property
    def need(self) -> int:
        """Tokens of KV that it takes."""
        return len(self.prompt) + max(self.max_tokens, 1)

    @property
    def least_need(self) -> int:
        """Tokens of KV without which it is not answered."""
        return min(self.need, len(self.prompt) + LEAST_TOKENS) if self.open_ended else self.need

    def within(self, tokens: int) -> GenerationRequest:
        """The same in a session with room for so many tokens, which are not fewer than its least."""
        if self.need <= tokens:
            return self
        return replace(self, max_tokens=tokens - len(self.prompt))

    def detokenizer(self) -> Detokenizer | None:
        """For one answer; ``None`` for a model without a tokenizer."""
        codec = self.model.codec
        if codec is None or self.syntax is None:
            return codec.detokenizer() if codec else None
        return self.syntax.markup.detokenizer(codec)

    def seeded(self, choice: int) -> Sampling:
        """How one of several choices is sampled: each differently, and each again the same."""
        seed = self.sampling.seed
        return (
            replace(self.sampling, seed=(seed + choice) % (1 << 63))
            if seed is not None and choice
            else self.sampling
        )


def limited(model: Servable, prompt: Sequence[int], wanted: int | None) -> int:
    """How long the answer may become.

    Raises:
        BadRequest: the model is an encoder, or hears and reads nothing.
        UsageError: an empty prompt, or token ids that the model does not have.
        PromptTooLong: nothing is left for an answer. A prompt is never cut.
    """
    if model.hears:
        raise BadRequest(
            f"{model.id} writes down what it hears, and answers no text",
            check="send a recording to /v1/audio/transcriptions, or choose another model",
            param="model",
        )
    if not model.generates:
        raise BadRequest(
            f"{model.id} is an encoder: it gives embeddings and generates no text",
            check="send it to /v1/embeddings, or choose another model",
            param="model",
        )
    if not prompt:
        raise UsageError("the prompt is empty")
    if max(prompt) >= model.shape.vocab_size:
        raise UsageError(
            f"token {max(prompt)} is outside of the vocabulary of {model.shape.vocab_size} tokens"
        )
    room = model.shape.context - len(prompt)
    if room < 1:
        raise PromptTooLong(
            f"this model's maximum context length is {model.shape.context} tokens, and the prompt has "
            f"{len(prompt)}",
            check="shorten the prompt; it is never cut for you",
        )
    return min(DEFAULT_TOKENS if wanted is None else wanted, room)


def affordable(asked: Sequence[GenerationRequest], most: int) -> Sequence[GenerationRequest]:
    """The same with no more tokens than one request may use; answers without a limit of their own get one.

    Args:
        most: of all prompts and answers together; 0 is without limit.

    Raises:
        BadRequest: it asks for more.
    """
    prompts = sum(len(one.prompt) for one in asked)
    wanted = prompts + sum(one.max_tokens * one.choices for one in asked)
    if not most or wanted <= most:
        return asked
    choices = sum(one.choices for one in asked)
    each = (most - prompts) // choices
    if each < 1 or not all(one.open_ended for one in asked):
        raise BadRequest(
            f"this asks for {wanted} tokens, prompt and answer together; one request may use {most}",
            check="set max_tokens lower, or shorten the prompt",
            param="max_tokens",
        )
    return [replace(one, max_tokens=min(one.max_tokens, each)) for one in asked]


def conversation(
    model: Servable,
    messages: Sequence[dict[str, Any]],
    calling: Calling | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> ChatPrompt:
    """A conversation for the model's template; tools in plain words where it knows none.

    Raises:
        UsageError: the model has no tokenizer.
    """
    if _codec(model).takes_tools:
        return ChatPrompt(messages, {"tools": calling.declared() if calling else None, **options})
    return ChatPrompt(as_text(messages, calling), options)


def joined(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """The conversation where roles take turns: messages of one role that follow each other are one."""
    found: list[dict[str, Any]] = []
    for message in messages:
        last = found[-1] if found else {}
        one = last.get("role") == message["role"] != "tool" and last.get("name") == message.get("name")
        if not one:
            found.append(dict(message))
            continue
        for name in ("content", "reasoning_content"):
            if said := together(last.get(name), message.get(name)):
                last[name] = said
        if calls := [*last.get("tool_calls", ()), *message.get("tool_calls", ())]:
            last["tool_calls"] = calls
    return found


@dataclass(frozen=True, slots=True)
class RequestPrompt:
    """A prompt as the model takes it, with the images that it shows."""

    token_ids: tuple[int, ...]
    own_end: str
    """As of an :class:`EncodedPrompt`."""
    images: tuple[Picture, ...] = ()
    placed: tuple[PlacedPicture, ...] = ()
    """As of a :class:`GenerationRequest`."""


async def encoded(
    model: Servable, given: str | ChatPrompt, *, special: bool = True, images: Sequence[GivenImage] = ()
) -> RequestPrompt:
    """A prompt as the model takes it. A conversation that its template refuses is tried again with the
    messages of one role joined: some templates demand that roles take turns.

    Args:
        images: what a text shows; those of a conversation are in its messages.

    Raises:
        BadRequest: the model takes no images, or none as its files are, or one is not an image.
        ShoalError: as ``encode_prompt``, and UsageError without a tokenizer.
    """
    codec, looking = _codec(model), model.looking
    encode = partial(_encode, codec, given, special)
    images = images or (() if isinstance(given, str) else images_in(given.messages))
    if not images:
        made = await trio.to_thread.run_sync(encode, None)
        return RequestPrompt(tuple(made.token_ids), made.own_end)
    if looking is None:
        where = images[0].where
        raise BadRequest(f"this model takes text only; {where} is an image", param=where)
    files = await trio.to_thread.run_sync(lambda: [image.decoded() for image in images])
    try:
        showing = await looking.encoded(model.local, codec, files, encode)
    except (BadWeights, UnsupportedModel) as error:  # of text it answers all the same
        raise BadRequest(error.message, check=error.check, param=images[0].where) from error
    made = showing.made
    return RequestPrompt(tuple(made.token_ids), made.own_end, showing.pictures, showing.placed)


def _encode(
    codec: TextCodec, given: str | ChatPrompt, special: bool, shown: ShownPictures | None
) -> EncodedPrompt:
    if isinstance(given, str):
        return encode_prompt(codec, given, special=special, pictures=shown)
    try:
        return encode_prompt(codec, _plain(given, given.messages), special=special, pictures=shown)
    except UsageError:
        fewer = joined(given.messages)
        if len(fewer) == len(given.messages):
            raise
        return encode_prompt(codec, _plain(given, fewer), special=special, pictures=shown)


def _plain(given: ChatPrompt, messages: Sequence[ChatMessage]) -> ChatPrompt:
    return ChatPrompt(without_images(messages), given.options)


async def prompt_ids(model: Servable, given: str | ChatPrompt, *, special: bool = True) -> list[int]:
    """Token ids of a prompt. Raises as :func:`encoded`."""
    return list((await encoded(model, given, special=special)).token_ids)


def _codec(model: Servable) -> TextCodec:
    if model.codec is None:
        raise UsageError(
            f"{model.id} has no tokenizer",
            check="send token ids as the prompt of /v1/completions",
        )
    return model.codec
