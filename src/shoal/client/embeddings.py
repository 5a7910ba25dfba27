"""Embeddings: texts in, vectors out.

Each text goes round the ring by itself, so no bit of its vector depends on what else was asked for. Several
go at once, each over a session of its own: while one hop computes one text, the next has another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from typing import TypeAlias, cast

import numpy as np
import trio

from shoal.client.session import Session
from shoal.client.timing import Timing, traced_answer
from shoal.errors import BadWeights, PromptTooLong, ShoalError, UsageError
from shoal.executor.arrays import Floats
from shoal.models.embedding.pooling import Vector, pool, tokens_needed, unit
from shoal.models.embedding.settings import EmbeddingSettings
from shoal.models.store.local_model import LocalModel
from shoal.models.text.codec import TextCodec
from shoal.tasks import one_error

SESSIONS = 4
"""Of one request at once. More would only wait at the hops, and take others' places there."""

OpenSession = Callable[[int], AbstractAsyncContextManager[Session]]
"""Opens a session for texts of up to so many tokens."""
Texts: TypeAlias = "str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]"
"""A text, or its token ids as they are, or a list of either."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What came of some texts."""

    vectors: Floats
    """``[texts, dimensions]``, in their order."""
    tokens: tuple[int, ...]
    """Of each text, its special tokens among them."""


def listed(texts: Texts) -> list[str] | list[list[int]]:
    """The texts as a list of one kind.

    Raises:
        UsageError: there are none, or they are of several kinds.
    """
    if isinstance(texts, str):
        return [texts]
    items = cast("list[object]", list(texts))
    if items and all(isinstance(item, str) for item in items):
        return cast("list[str]", items)
    if items and all(isinstance(item, int) for item in items):
        return [cast("list[int]", items)]
    if items and all(isinstance(item, Sequence) and not isinstance(item, str) for item in items):
        return [list(ids) for ids in cast("list[Sequence[int]]", items)]
    raise UsageError(
        "there is nothing to embed" if not items else "what is to be embedded is of several kinds",
        check="give a text, a list of texts, a list of token ids, or a list of such lists",
    )


def text_tokens(
    local: LocalModel,
    codec: TextCodec | None,
    settings: EmbeddingSettings,
    texts: list[str] | list[list[int]],
    *,
    truncate: bool = False,
) -> list[list[int]]:
    """Token ids of each text, special tokens among them; those that were given stay as they are. Blocks.

    Args:
        truncate: cut texts that are too long at their end; special tokens stay.

    Raises:
        UsageError: a text without tokens, or a token that the model does not have.
        PromptTooLong: a text is too long.
        BadWeights: the model has no tokenizer, or it fails.
    """
    return [_ids(local, codec, settings, text, number, truncate) for number, text in enumerate(texts)]


def _ids(
    local: LocalModel,
    codec: TextCodec | None,
    settings: EmbeddingSettings,
    text: str | list[int],
    number: int,
    truncate: bool,
) -> list[int]:
    shown, longest = f"text {number + 1}", settings.max_tokens
    ids = text if not isinstance(text, str) else _encoded(local, codec, settings, text)
    if not ids:
        raise UsageError(f"{shown} is empty", check="leave it out: an empty text has no embedding")
    if min(ids) < 0 or max(ids) >= local.shape.vocab_size:
        raise UsageError(
            f"{shown} has a token outside of the vocabulary of {local.shape.vocab_size} tokens",
            check="check that the token ids come from this model's tokenizer",
        )
    if len(ids) > longest and truncate:
        behind = 0 if codec is None or not isinstance(text, str) else _closing(codec, settings, text, ids)
        ids = [*ids[: longest - behind], *ids[len(ids) - behind :]]
    if len(ids) > longest:
        raise PromptTooLong(
            f"this model's maximum context length is {longest} tokens, and {shown} has {len(ids)}",
            check="shorten it, or cut it in parts with an embedding each",
        )
    return ids


def _encoded(local: LocalModel, codec: TextCodec | None, settings: EmbeddingSettings, text: str) -> list[int]:
    if codec is None:
        raise BadWeights(f"{local.name} has no tokenizer", check="give token ids instead of texts")
    return codec.encode(text.lower() if settings.lower_case else text)


def _closing(codec: TextCodec, settings: EmbeddingSettings, text: str, ids: Sequence[int]) -> int:
    """How many special tokens the tokenizer has put behind a text."""
    plain = codec.encode(text.lower() if settings.lower_case else text, special=False)
    added = len(ids) - len(plain)
    before = next((n for n in range(added + 1) if ids[n : n + len(plain)] == plain), added)
    return added - before


def check_embeddable(local: LocalModel, dimensions: int | None) -> None:
    """Refuse embeddings behind a soft prompt, and vectors longer than they are.

    Raises:
        UsageError: the model has a soft prompt; ``dimensions`` is less than 1, or more than the model has.
    """
    if local.soft_prompt is not None:
        raise UsageError(
            f"embeddings are of texts alone, and {local.name} has a soft prompt before each",
            check="ask the model without the name behind it",
        )
    width = local.shape.hidden_size
    if dimensions is not None and not 1 <= dimensions <= width:
        raise UsageError(
            f"dimensions must be in 1..{width} for {local.name}, not {dimensions}",
            check="leave it out for all that the model has",
        )


async def embed_tokens(
    open_session: OpenSession,
    texts: Sequence[Sequence[int]],
    settings: EmbeddingSettings,
    dimensions: int | None = None,
    *,
    follow: Callable[[Session], None] = lambda _: None,
) -> Floats:
    """The embeddings ``[texts, dimensions]`` of token ids, which :func:`text_tokens` has checked.

    Args:
        dimensions: keep this many of each, and bring what is left to length 1 again if the model's have it.
        follow: told of each session that has embedded a text.

    Raises:
        ShoalError: a session could not be opened, or failed.
    """
    found: list[Vector | None] = [None] * len(texts)
    longest, left = max(map(len, texts)), iter(range(len(texts)))
    work = _Work(open_session, texts, settings, dimensions, follow, found, left)
    # Only when one is open, others: of several that were opened at once, each might find half a route.
    async with open_session(longest) as session:
        with one_error():
            async with trio.open_nursery() as nursery:
                for _ in range(min(SESSIONS, len(texts)) - 1):
                    nursery.start_soon(work.help, longest)
                await work.run(session)
                for opening in work.opening:
                    opening.cancel()  # nothing is left for whoever is not open yet
    return np.stack([vector for vector in found if vector is not None])


@dataclass(frozen=True, slots=True)
class _Work:
    """What the sessions of one request share."""

    open_session: OpenSession
    texts: Sequence[Sequence[int]]
    settings: EmbeddingSettings
    dimensions: int | None
    follow: Callable[[Session], None]
    found: list[Vector | None]
    left: Iterator[int]
    """The numbers of the texts that nobody has taken yet."""
    opening: set[trio.CancelScope] = field(default_factory=set[trio.CancelScope])
    """Of the sessions that are being opened."""

    async def help(self, longest: int) -> None:
        """The same over one more session; where none is to be had, the texts are left to the others."""
        async with AsyncExitStack() as stack:
            with trio.CancelScope() as opening:
                self.opening.add(opening)
                try:
                    session = await stack.enter_async_context(self.open_session(longest))
                except ShoalError:
                    return  # if more is wrong than that there is no room, the first session says so
                finally:
                    self.opening.discard(opening)
                await self.run(session)

    async def run(self, session: Session) -> None:
        """Embed texts until none is left."""
        for number in self.left:
            ids = self.texts[number]
            with traced_answer(session, len(ids), Timing(), "embeddings"):
                hidden = await session.encode(ids, tokens_needed(self.settings.pooling, len(ids)))
            self.found[number] = self._vector(hidden)
            self.follow(session)

    def _vector(self, hidden: Floats) -> Vector:
        vector = pool(hidden, self.settings.pooling)[: self.dimensions]
        return unit(vector) if self.settings.normalized else vector
