"""An answer with the receipts of who computed it, as it is kept and handed on; and what its receipts show.

Two things are checked without any weights. Each hop's receipts are its own: signed, in their order, about
this session and this question, and none is left out. And they fit together: what a hop says that it sent on
is what the next one says that it was given, and the first was given what the client says that it sent.

Where two neighbours disagree, one of them lies, and nothing here shows which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from shoal.errors import UsageError
from shoal.trust.receipt import (
    Hash,
    Id,
    Receipt,
    VerifySignature,
    Work,
    contradict,
    first_unsigned,
    whole_receipts,
)
from shoal.trust.rows import HASH, WINDOW, RowLog, windows
from shoal.types import NUMERICS_PATTERN, Codec, Numerics, PeerId, Span
from shoal.wire.fields import MAX_TOKENS
from shoal.wire.messages import MAX_HOPS, SignedWindow

KIND = "shoal answer 1"
MAX_FILE = 64 << 20
"""Bytes of a kept answer: one of a million tokens has no more."""


class KeptWindow(Struct, frozen=True, omit_defaults=True):
    """As :class:`SignedWindow`, by name."""

    sent: Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
    came: Hash
    went: Hash
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]
    countersignature: Annotated[bytes, Meta(max_length=65)] = b""

    @classmethod
    def of(cls, one: SignedWindow) -> KeptWindow:
        """As it came."""
        return cls(one.sent, one.came, one.went, one.signature, one.countersignature)


class HopReceipts(Struct, frozen=True):
    """What one hop has signed."""

    peer: Annotated[str, Meta(min_length=1, max_length=128)]
    start: Annotated[int, Meta(ge=0, le=1 << 14)]
    end: Annotated[int, Meta(ge=1, le=1 << 14)]
    opening: Id
    receipts: Annotated[tuple[KeptWindow, ...], Meta(max_length=MAX_TOKENS // WINDOW)]
    """Empty where it gave none."""
    missing: Annotated[str, Meta(max_length=1024)] = ""
    """Why it gave none."""
    entered: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] = 0
    """Positions of which the next hop has what it was given from another, whose place this one took."""

    @property
    def span(self) -> Span:
        return Span(self.start, self.end)


class KeptAnswer(Struct, frozen=True, kw_only=True):
    """An answer with its receipts."""

    kind: Literal["shoal answer 1"] = KIND
    model: Annotated[str, Meta(min_length=1, max_length=512)]
    digest: Annotated[str, Meta(pattern="^sha256:[0-9a-f]{64}$")]
    n_blocks: Annotated[int, Meta(ge=1, le=1 << 14)]
    width: Annotated[int, Meta(ge=1, le=1 << 20)]
    numerics: Annotated[str, Meta(pattern=NUMERICS_PATTERN, max_length=64)]
    codec: Codec
    session: Id
    nonce: Id
    token_ids: Annotated[
        tuple[Annotated[int, Meta(ge=0, le=1 << 31)], ...], Meta(min_length=1, max_length=MAX_TOKENS)
    ]
    """Those of the prompt, and those that were generated."""
    prompt_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
    tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
    """How many of them went through the hops: all, but for the last one of most answers."""
    sampling: dict[str, Any] | None = None
    """How each token was chosen, where that can be done again: greedily, or by a seed."""
    sent: Annotated[bytes, Meta(max_length=MAX_TOKENS * HASH)] = b""
    """The hashes of the rows that the client sent to the first hop; empty where it does not say."""
    hops: Annotated[tuple[HopReceipts, ...], Meta(min_length=1, max_length=MAX_HOPS)]
    images: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] = 0
    """How many stand in the place of some of the prompt's tokens. They are not kept with it."""

    def encoded(self) -> bytes:
        """As JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    def work(self, index: int) -> Work:
        """What the receipts of the hop at ``index`` have in common."""
        hop = self.hops[index]
        return Work(
            session=self.session,
            nonce=self.nonce,
            opening=hop.opening,
            hop=index,
            start=hop.start,
            end=hop.end,
            digest=self.digest,
            numerics=self.numerics,
            codec=self.codec,
        )

    def receipts(self, index: int) -> list[Receipt]:
        """The receipts of the hop at ``index`` as it must have signed them."""
        return whole_receipts(self.work(index), self.tokens, signed_windows(self.hops[index]))


_kept = msgspec.json.Decoder(KeptAnswer)


def read_kept_answer(data: bytes, name: str) -> KeptAnswer:
    """Read a kept answer, or the one that the response of a gateway carries.

    Raises:
        UsageError: it is none, or says of itself what cannot be.
    """
    if len(data) > MAX_FILE:
        raise _unreadable(name, f"it has {len(data)} bytes; at most {MAX_FILE} are read")
    try:
        outer = msgspec.json.decode(data)
        inner = outer.get("shoal") if isinstance(outer, dict) else None
        if isinstance(inner, dict) and "receipts" in inner:
            answer = msgspec.convert(inner["receipts"], KeptAnswer)
        else:
            answer = _kept.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _unreadable(name, str(error)) from error
    try:
        Numerics.parse(answer.numerics)
    except ValueError as error:
        raise _unreadable(name, str(error)) from error
    if not answer.prompt_tokens <= len(answer.token_ids) or answer.tokens > len(answer.token_ids):
        raise _unreadable(name, "it has fewer tokens than it says")
    if any(hop.start >= hop.end or hop.end > answer.n_blocks for hop in answer.hops):
        raise _unreadable(name, "a hop of it has blocks that cannot be")
    if answer.sent and len(answer.sent) != answer.tokens * HASH:
        raise _unreadable(name, "it has hashes of another number of rows than it has tokens")
    return answer


def _unreadable(name: str, why: str) -> UsageError:
    return UsageError(
        f"{name} is no answer with receipts: {why}",
        check="give a file that shoal run --receipts has written, or a gateway's response with receipts",
        next_command='shoal run --receipts answer.json MODEL "PROMPT"',
    )


def signed_windows(hop: HopReceipts) -> list[SignedWindow]:
    """Its receipts as they travel."""
    return [
        SignedWindow(one.sent, one.came, one.went, one.signature, one.countersignature)
        for one in hop.receipts
    ]


ReceiptFaultKind = Literal["missing", "cut", "signature", "route", "sent", "received", "links"]


@dataclass(frozen=True, slots=True)
class ReceiptFault:
    """Something that the receipts of an answer show to be wrong, or do not show."""

    kind: ReceiptFaultKind
    hops: tuple[int, ...]
    """Whom it may be the fault of, by their place: one, or two who contradict each other; none where it may
    as well be that of a hop that was lost."""
    window: int | None
    what: str


def check_answer(
    answer: KeptAnswer, verify: VerifySignature, received: RowLog | None = None
) -> list[ReceiptFault]:
    """What is wrong with the receipts of an answer; empty where all of them hold.

    Args:
        received: what the client was given by the last hop, where it is the client who checks.
    """
    faults = _check_route(answer)
    sound: dict[int, list[Receipt]] = {}
    for index, hop in enumerate(answer.hops):
        found = _check_hop(answer, index, hop, verify)
        if isinstance(found, ReceiptFault):
            faults.append(found)
        else:
            sound[index] = found
    if answer.sent and 0 in sound:
        faults += _check_sent(answer, sound[0])
    for index, receipts in sound.items():
        faults += _check_sent_positions(answer, index, receipts)
    for index in range(len(answer.hops) - 1):
        if index in sound and index + 1 in sound:
            faults += _check_link(answer, index, sound)
    last = len(answer.hops) - 1
    if received is not None and last in sound:
        faults += _check_received(answer, last, sound[last], received)
    return faults


def uncompared(answer: KeptAnswer) -> int:
    """Windows of neighbours that could not be compared: one of them took its place later, and was not sent on
    what it had computed before, so its receipts say less than the next one's."""
    pairs = zip(answer.hops, answer.hops[1:], strict=False)
    return sum(
        one.sent != _all(answer, number)
        for hop, onward in pairs
        if onward.receipts
        for number, one in enumerate(hop.receipts)
    )


def _named(answer: KeptAnswer, index: int) -> str:
    hop = answer.hops[index]
    return f"hop {index} ({hop.peer}, blocks {hop.span})"


def _check_route(answer: KeptAnswer) -> list[ReceiptFault]:
    return [
        ReceiptFault("route", (index, index + 1), None, f"{_named(answer, index + 1)} does not go on where "
              f"{_named(answer, index)} ends")
        for index, (hop, onward) in enumerate(zip(answer.hops, answer.hops[1:], strict=False))
        if hop.end != onward.start
    ]  # fmt: skip


def _check_hop(
    answer: KeptAnswer, index: int, hop: HopReceipts, verify: VerifySignature
) -> list[Receipt] | ReceiptFault:
    """The receipts of a hop, if it has signed all of them."""
    who, expected = _named(answer, index), windows(answer.tokens)
    if not hop.receipts:
        why = f": {hop.missing}" if hop.missing else ""
        return ReceiptFault("missing", (index,), None, f"{who} gave no receipts{why}")
    if len(hop.receipts) != expected:
        what = f"{who} has {len(hop.receipts)} receipts for {answer.tokens} tokens, not {expected}"
        return ReceiptFault("cut", (index,), min(len(hop.receipts), expected), what)
    receipts = answer.receipts(index)
    bad = first_unsigned(PeerId(hop.peer), receipts, signed_windows(hop), verify)
    if bad is None:
        return receipts
    what = f"receipt {bad} of {who} is not one that it has signed: it, or what stands before it, was changed"
    return ReceiptFault("signature", (index,), bad, what)


def _check_sent(answer: KeptAnswer, receipts: Sequence[Receipt]) -> list[ReceiptFault]:
    own = RowLog(answer.sent)
    for receipt in receipts:
        if own.window(receipt.window)[1] != receipt.came:
            what = f"{_named(answer, 0)} says that it was given other rows than the client sent"
            return [ReceiptFault("sent", (0,), receipt.window, f"{what}, {_tokens(receipt.window, answer)}")]
    return []


def sent_masks(answer: KeptAnswer, index: int, received: RowLog) -> list[int]:
    """By window, the positions of which a hop of an exact answer must have signed that it sent rows.

    Never what it says itself: who chose the positions could choose those that nobody compares.

    Args:
        received: what the client was given by the last hop.
    """
    numbers = range(windows(answer.tokens))
    if index < len(answer.hops) - 1:
        return [_all(answer, number) for number in numbers]
    return [received.window(number)[0] & _all(answer, number) for number in numbers]


def _check_sent_positions(answer: KeptAnswer, index: int, receipts: Sequence[Receipt]) -> list[ReceiptFault]:
    """Whether a hop signs for the positions that there are; for all of them, where it must have had all."""
    inner = index < len(answer.hops) - 1
    exact = inner and Numerics.parse(answer.numerics).exact
    for receipt in receipts:
        whole = _all(answer, receipt.window)
        if receipt.sent & ~whole:
            what = f"{_named(answer, index)} signs for rows of tokens that there are not"
        elif exact and receipt.sent != whole:
            what = f"{_named(answer, index)} leaves out rows that it must have computed"
        else:
            continue
        what = f"{what}, {_tokens(receipt.window, answer)}"
        return [ReceiptFault("links" if inner else "received", (index,), receipt.window, what)]
    return []


def _check_link(answer: KeptAnswer, index: int, sound: Mapping[int, Sequence[Receipt]]) -> list[ReceiptFault]:
    before: list[ReceiptFault] = []  # the first one of what a lost hop may have sent
    for one, onward in zip(sound[index], sound[index + 1], strict=True):
        if one.sent != _all(answer, one.window) or one.went == onward.came:
            continue
        if one.window * WINDOW < answer.hops[index].entered:
            before = before or [_lost_hops_fault(answer, index, one.window)]
            continue
        what = (
            f"{_named(answer, index)} says that it sent other rows than {_named(answer, index + 1)} says "
            f"that it was given, {_tokens(one.window, answer)}"
        )
        return [*before, ReceiptFault("links", (index, index + 1), one.window, what)]
    return before


def _lost_hops_fault(answer: KeptAnswer, index: int, window: int) -> ReceiptFault:
    what = (
        f"{_named(answer, index + 1)} says that it was given other rows than {_named(answer, index)} has "
        f"computed, {_tokens(window, answer)}, but from a hop that was lost, whose place that one took: the "
        "lost one lied, or one of these two does"
    )
    return ReceiptFault("links", (), window, what)


def _check_received(
    answer: KeptAnswer, index: int, receipts: Sequence[Receipt], received: RowLog
) -> list[ReceiptFault]:
    for receipt in receipts:
        # Its positions are ours, too: rows that are signed for and were not sent would hide those that were.
        if received.window(receipt.window) != (receipt.sent, receipt.went):
            what = f"{_named(answer, index)} says that it sent other rows than the client was given"
            what = f"{what}, {_tokens(receipt.window, answer)}"
            return [ReceiptFault("received", (index,), receipt.window, what)]
    return []


def _all(answer: KeptAnswer, window: int) -> int:
    """The mask of a window of which every position has a row."""
    return (1 << min(WINDOW, answer.tokens - window * WINDOW)) - 1


def _tokens(window: int, answer: KeptAnswer) -> str:
    last = min((window + 1) * WINDOW, answer.tokens) - 1
    return f"at tokens {window * WINDOW} to {last}"


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Two receipts with one signer that cannot both be honest: proof against it, for anybody."""

    peer: PeerId
    one: Receipt
    other: Receipt
    countersignatures: tuple[bytes, bytes]
    """Of the peer's delegate, for a contract to read; empty where it has none."""


def find_contradiction(one: KeptAnswer, other: KeptAnswer, verify: VerifySignature) -> Contradiction | None:
    """The first two receipts of two kept answers that are proof against who signed them both."""
    theirs: dict[tuple[str, bytes, bytes, bytes, int], tuple[Receipt, bytes]] = {}
    for index, hop in enumerate(other.hops):
        for receipt, kept in zip(_signed_by(other, index, verify), hop.receipts, strict=False):
            theirs[_question(hop.peer, receipt)] = receipt, kept.countersignature
    for index, hop in enumerate(one.hops):
        for receipt, kept in zip(_signed_by(one, index, verify), hop.receipts, strict=False):
            found = theirs.get(_question(hop.peer, receipt))
            if found is not None and contradict(receipt, found[0]):
                both = (kept.countersignature, found[1])
                return Contradiction(PeerId(hop.peer), receipt, found[0], both)
    return None


def _question(peer: str, receipt: Receipt) -> tuple[str, bytes, bytes, bytes, int]:
    work = receipt.work
    return peer, work.session, work.nonce, work.opening, receipt.window


def _signed_by(answer: KeptAnswer, index: int, verify: VerifySignature) -> list[Receipt]:
    """The receipts of a hop up to the first that it has not signed."""
    hop, found = answer.hops[index], answer.receipts(index)
    bad = first_unsigned(PeerId(hop.peer), found, signed_windows(hop), verify)
    return found if bad is None else found[:bad]
