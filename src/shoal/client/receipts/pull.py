"""Asks the hops of a session for their receipts, checks them, and remembers who gave none or bad ones.

This is done beside an answer and never changes it: whoever gives no receipts in time loses reputation alone.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import trio

from shoal.client.ring.ring import Ring
from shoal.client.sampling import Sampling
from shoal.client.session import Session
from shoal.errors import ChannelClosed, ShoalError, UsageError
from shoal.net.identity import verify
from shoal.routing.reputation import REFUSAL, SHARED_FAULT, WHOLE_FAULT
from shoal.trust.answer import (
    HopReceipts,
    KeptAnswer,
    KeptWindow,
    ReceiptFault,
    check_answer,
    uncompared,
)
from shoal.trust.rows import HASH
from shoal.types import ModelShape, PeerId
from shoal.wire.messages import SignedWindow

PULL_WITHIN_S = 5.0
"""What all hops have to sign and send their receipts, beside what each answer takes them."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AnswerReceipts:
    """The receipts of an answer, and what they show."""

    kept: KeptAnswer
    faults: tuple[ReceiptFault, ...]
    """What is wrong with them; empty where all hold."""
    uncompared: int
    """Windows that two neighbours could not be compared in."""


@dataclass(frozen=True, slots=True)
class AnswerText:
    """What hops are to sign: an answer's tokens, and what the first hop was sent for them."""

    token_ids: tuple[int, ...]
    """Those of the prompt, and those that were generated."""
    prompt_tokens: int
    tokens: int
    """How many of them went through the hops."""
    sampling: dict[str, Any] | None
    sent: bytes
    """The hashes of their rows."""
    images: int = 0
    """That stand among the prompt's tokens."""


def check_can_sign(shape: ModelShape) -> None:
    """Raises UsageError: hops sign nothing of such a model."""
    if shape.adapter is not None:
        raise UsageError(
            "receipts name a model and no adapter: none are given for a model with one",
            check="ask the model without its adapter, or leave the receipts out",
        )


async def pull_receipts(
    session: Session,
    prompt: Sequence[int],
    said: Sequence[int],
    sampling: Sampling | None,
    timeout_s: float = PULL_WITHIN_S,
) -> AnswerReceipts:
    """What the hops sign of the answer that a session holds, checked.

    Args:
        said: the answer's tokens.
        sampling: how the answer's were chosen; ``None`` where that is not to be checked.

    Raises:
        UsageError: the session holds something else.
    """
    text = await held_text(session, prompt, said, sampling)
    return await signed_text(session.ring, session.shape, text, os.urandom(16), timeout_s)


async def held_text(
    session: Session, prompt: Sequence[int], said: Sequence[int], sampling: Sampling | None
) -> AnswerText:
    """What of an answer a session still holds. Raises as :func:`pull_receipts`."""
    check_can_sign(session.shape)
    if session.ends.virtual:
        raise UsageError(
            "receipts are of tokens that anybody can embed again: none are given for an answer with a soft "
            "prompt",
            check="ask the model without its soft prompt, or leave the receipts out",
        )
    token_ids = (*prompt, *said)
    tokens = min(len(session.token_ids), len(token_ids))
    if not tokens or tuple(session.token_ids[:tokens]) != token_ids[:tokens]:
        raise UsageError(
            "the session does not hold this answer any more",
            check="ask for the receipts before the session goes on",
        )
    sent = (await session.sent_hashes())[: tokens * HASH]
    images = session.ends.pictures.count
    return AnswerText(token_ids, len(prompt), tokens, _sampled(sampling), sent, images)


async def signed_text(
    ring: Ring, shape: ModelShape, text: AnswerText, nonce: bytes, timeout_s: float
) -> AnswerReceipts:
    """What the hops of a ring sign of an answer that went over it, checked.

    Args:
        nonce: new, or one for which they have committed to it.
    """
    answers = await ring.places.receipts(nonce, text.tokens, timeout_s)
    given = zip(ring.places.hops, answers, strict=True)
    hops = tuple(
        HopReceipts(
            peer=hop.peer,
            start=hop.hop.span.start,
            end=hop.hop.span.end,
            opening=hop.opening,
            entered=min(hop.entered, text.tokens),
            receipts=() if isinstance(signed, ShoalError) else _kept(signed),
            missing=signed.message[:1024] if isinstance(signed, ShoalError) else "",
        )
        for hop, signed in given
    )
    kept = KeptAnswer(
        model=shape.name,
        digest=shape.digest,
        n_blocks=shape.n_blocks,
        width=shape.hidden_size,
        numerics=str(ring.numerics),
        codec=ring.codec,
        session=ring.session,
        nonce=nonce,
        token_ids=text.token_ids,
        prompt_tokens=text.prompt_tokens,
        tokens=text.tokens,
        sampling=text.sampling,
        sent=text.sent,
        hops=hops,
        images=text.images,
    )
    received = ring.received.copy(text.tokens)
    faults = await trio.to_thread.run_sync(check_answer, kept, verify, received)
    gone = {i for i, (_, signed) in enumerate(given) if isinstance(signed, ChannelClosed)}
    _remember(ring, kept, faults, gone)
    return AnswerReceipts(kept, tuple(faults), uncompared(kept))


def _kept(signed: Sequence[SignedWindow]) -> tuple[KeptWindow, ...]:
    return tuple(map(KeptWindow.of, signed))


def _sampled(sampling: Sampling | None) -> dict[str, Any] | None:
    if sampling is None or (sampling.temperature and sampling.seed is None):
        return None  # by chance, which cannot be had again
    fields = dataclasses.asdict(sampling) | {"top_logprobs": None}
    return fields | {"logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()}}


def _remember(ring: Ring, kept: KeptAnswer, faults: Sequence[ReceiptFault], gone: set[int]) -> None:
    reputation, now = ring.reputation, trio.current_time()
    for fault in faults:
        log.warning("receipts: %s", fault.what)
        share = WHOLE_FAULT if len(fault.hops) == 1 else SHARED_FAULT
        if fault.kind == "missing":
            share = REFUSAL
        for index in fault.hops:
            if index not in gone:  # the loss of a hop is held against it where it is noticed
                reputation.failed(PeerId(kept.hops[index].peer), now, share)
