"""What of an answer is computed again, and what follows from it. Pure: no I/O, no clock, chance is handed in.

An audit is of one hop, from the first position to the end of a window: attention looks back, so a window
cannot be computed without what is before it, and all windows on the way are compared too. Its cost is counted
in rows through blocks, as that of the answer is: what a row costs in a prefill is at most what it costs one
by one, so an audit costs less than it counts for.

Which hop and which window are due is drawn ahead, in secret, and waits until the budget allows it twice, for
a second auditor too. So no hop knows, while it computes, whether it will be audited. More than the budget is
spent only where two auditors disagree and a third is asked, until the budget has caught up.

Canaries (:mod:`.canary`) have a share of the budget of their own: what they take is counted apart, so that
audits, which are due at once, never leave them nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from shoal.trust.answer import KeptAnswer, ReceiptFault
from shoal.trust.independence import Whereabouts, apart
from shoal.trust.rows import WINDOW, RowLog, windows
from shoal.types import Numerics, Span

MAX_AUDIT_BYTES = 64 << 20
"""Rows of one audit: of a longer session no later window is drawn."""
SHOWN_WITHIN_S = 2.0
"""What showing the rows of an audit may take by the speed of the link: half of what a hop has for it."""
OPINIONS = 3
"""Auditors of one window, at most."""
BUDGET = 0.05
"""Share of the compute of answers that audits may take, where nobody says how much."""

Chance = Callable[[], float]
"""A number in [0, 1) that nobody else can foresee."""
Share = Annotated[float, Meta(ge=0, lt=1)]
RowBlocks = Annotated[float, Meta(ge=0, le=1e18)]


class AuditAccount(Struct, frozen=True):
    """What was computed, what of it was spent on audits, and what is due next. All in rows through blocks."""

    earned: RowBlocks = 0.0
    """By all answers that were to be audited, also those of which no hop could be: each row that went through
    the hops for one, times their blocks."""
    spent: RowBlocks = 0.0
    hop: Share = 0.0
    window: Share = 0.0
    """Where among an answer's hops and windows the next audit is."""
    canaries: RowBlocks = 0.0
    """Of what was spent, on canaries: to answer them, and to audit them."""

    @property
    def share(self) -> float:
        """Of the compute of answers, what audits took."""
        return self.spent / self.earned if self.earned else 0.0

    @property
    def canary_share(self) -> float:
        """Of the compute of answers, what canaries took."""
        return self.canaries / self.earned if self.earned else 0.0

    def answered(self, rows: int, blocks: int) -> AuditAccount:
        """An answer has gone through ``blocks`` blocks."""
        return replace(self, earned=self.earned + rows * blocks)

    def pay(self, cost: float) -> AuditAccount:
        """Something was computed again."""
        return replace(self, spent=self.spent + cost)

    def pay_canary(self, cost: float) -> AuditAccount:
        """A canary has taken that; below 0: so much less than was set aside for it."""
        canaries = max(0.0, self.canaries + cost)
        return replace(self, spent=max(0.0, self.spent + cost), canaries=canaries)

    def draw(self, chance: Chance) -> AuditAccount:
        """With another audit due next."""
        return replace(self, hop=chance(), window=chance())


@dataclass(frozen=True, slots=True)
class AuditTarget:
    """The hop of an answer that is audited, up to the end of a window."""

    hop: int
    window: int
    span: Span
    tokens: int
    """Rows that it is given."""

    @property
    def cost(self) -> int:
        """In rows through blocks."""
        return self.tokens * len(self.span)


def auditable(answer: KeptAnswer, faults: Sequence[ReceiptFault]) -> dict[int, int]:
    """The hops that can be audited, with how many windows of each.

    Of a hop without receipts that hold, nothing follows from what it should have computed; nor from rows that
    the hop before it has not signed for.
    """
    return _sound(answer, faults) if Numerics.parse(answer.numerics).exact else {}


def measurable(answer: KeptAnswer, faults: Sequence[ReceiptFault]) -> dict[int, int]:
    """The hops of which can be told how far they are from what others compute, where bits are no promise.

    They must show what they sent on; the last one sent it to the client, which does not keep it.
    """
    found = _sound(answer, faults)
    found.pop(len(answer.hops) - 1, None)
    return found


def _sound(answer: KeptAnswer, faults: Sequence[ReceiptFault]) -> dict[int, int]:
    bad = {hop for fault in faults for hop in fault.hops}
    found: dict[int, int] = {}
    for index, hop in enumerate(answer.hops):
        if index in bad or not hop.receipts or (index == 0 and not answer.sent):
            continue
        count = len(hop.receipts) if index == 0 else _linked(answer, index)
        if count:
            found[index] = count
    return found


def _linked(answer: KeptAnswer, index: int) -> int:
    """Windows from the first on in which the hop before says that it sent what this one was given."""
    before, hop = answer.hops[index - 1], answer.hops[index]
    pairs = zip(before.receipts, hop.receipts, strict=False)
    return next((n for n, (one, onward) in enumerate(pairs) if one.went != onward.came), len(before.receipts))


def within_reach(hops: Mapping[int, int], bytes_s: Sequence[float], row_bytes: int) -> dict[int, int]:
    """Of the hops that can be audited, how many windows of each: no more than can be had in time.

    Args:
        hops: what :func:`auditable` or :func:`measurable` says.
        bytes_s: of the link over which the rows are to come that each hop of the answer was given.
        row_bytes: of one row, as it travels.
    """
    fits = {hop: int(bytes_s[hop] * SHOWN_WITHIN_S / (row_bytes * WINDOW)) for hop in hops}
    return {hop: min(count, max(1, fits[hop])) for hop, count in hops.items()}


def next_target(
    account: AuditAccount, answer: KeptAnswer, hops: Mapping[int, int], budget: float, row_bytes: int
) -> AuditTarget | None:
    """What of an answer is to be audited now; ``None`` where the budget does not allow what is due.

    Args:
        hops: what :func:`within_reach` leaves of them, without those that were audited already.
        budget: share of the compute of answers that audits may take, beside canaries.
        row_bytes: of one row, as it travels.
    """
    target = target_at(account.hop, account.window, answer, hops, row_bytes)
    if target is None:
        return None
    # Twice: for whoever must confirm what is found.
    fits = account.spent - account.canaries + 2 * target.cost <= budget * account.earned
    return target if fits else None


def target_at(
    hop: float, window: float, answer: KeptAnswer, hops: Mapping[int, int], row_bytes: int
) -> AuditTarget | None:
    """The hop and the window that these shares in [0, 1) are of an answer; ``None`` where it has none."""
    places = sorted(hops)
    if not places:
        return None
    most = max(1, MAX_AUDIT_BYTES // (row_bytes * WINDOW))
    place = places[int(hop * len(places))]
    number = int(window * min(hops[place], most))
    tokens = min((number + 1) * WINDOW, answer.tokens)
    return AuditTarget(place, number, answer.hops[place].span, tokens)


def misfit_window(answer: KeptAnswer, target: AuditTarget, given: RowLog) -> int | None:
    """The first window in which rows are not those that a hop has signed it was given; ``None``: they are."""
    receipts = answer.hops[target.hop].receipts
    return next((n for n in range(target.window + 1) if given.window(n)[1] != receipts[n].came), None)


def differing_window(answer: KeptAnswer, target: AuditTarget, computed: RowLog) -> int | None:
    """The first window of which a hop has signed other rows than these; ``None``: it has signed these."""
    for number in range(target.window + 1):
        receipt = answer.hops[target.hop].receipts[number]
        # Of the last window of an audit there may be fewer rows than the receipt is about, never more.
        if computed.window(number, receipt.sent)[1] != receipt.went:
            return number
    return None


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one auditor makes of the rows that a hop was given."""

    by: str
    window: int | None
    """The first that differs from what the hop has signed; ``None``: all are the same."""
    root: bytes
    """Of that window, as the auditor has it; empty where nothing differs."""
    at: Whereabouts

    @property
    def same(self) -> bool:
        """Whether the hop computed what it should have."""
        return self.window is None


AuditVerdict = Literal["same", "cheat", "open"]
"""The hop computed what it should have; or something else, as two auditors found to the bit; or neither is
shown."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What follows from opinions."""

    verdict: AuditVerdict
    alone: tuple[str, ...] = ()
    """Auditors whose opinion no other has, where two others agree."""
    near: bool = False
    """Whether all who agree may be one."""


def judge(opinions: Sequence[Opinion]) -> Judgement:
    """What follows from what auditors found, in the order in which they were asked.

    A first one that finds nothing is believed: to ask another would double the cost of every audit. One that
    finds a difference is not: then two must have the same opinion, and a cheat is named only where both have
    the same rows, to the bit. Two that may be one operator's count as one: what they agree in is left open.
    """
    if not opinions:
        return Judgement("open")
    if opinions[0].same:
        return Judgement("same")
    near = False
    for opinion in opinions:
        agreeing = [o for o in opinions if (o.window, o.root) == (opinion.window, opinion.root)]
        others = [one for one in agreeing if one.by != opinion.by]
        if any(apart(opinion.at, other.at) for other in others):
            alone = tuple(o.by for o in opinions if o not in agreeing)
            return Judgement("same" if opinion.same else "cheat", alone)
        near = near or bool(others)
    return Judgement("open", near=near)


def settled(opinions: Sequence[Opinion]) -> bool:
    """Whether no further auditor is to be asked."""
    return len(opinions) >= OPINIONS or judge(opinions).verdict != "open"


def is_whole(answer: KeptAnswer, faults: Sequence[ReceiptFault]) -> bool:
    """Whether every hop's receipts hold for all of the answer."""
    return not faults and all(len(hop.receipts) == windows(answer.tokens) for hop in answer.hops)
