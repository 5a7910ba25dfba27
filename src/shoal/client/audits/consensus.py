"""Has replicas compute an answer too, compares what all have signed, and names who lied.

When an answer is complete, its rows go over other routes with the same boundaries, a prefill each. Every hop
of every route commits to its receipts before any of them shows its own. Rules: :mod:`shoal.trust.consensus`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import trio

from shoal.client.audits.auditor_finder import AuditorFinder
from shoal.client.audits.auditors import AuditJob, computed, fault_share, place_of
from shoal.client.audits.findings import Findings
from shoal.client.audits.protection import AuditResult, Protection
from shoal.client.audits.replicas import Replicas
from shoal.client.receipts.pull import AnswerReceipts, AnswerText, held_text, signed_text
from shoal.client.ring.ring import Ring
from shoal.client.ring.rings import Rings
from shoal.client.sampling import Sampling
from shoal.client.session import Session
from shoal.errors import NotAllowed, ShoalError
from shoal.routing.reputation import SHARED_FAULT, WHOLE_FAULT
from shoal.tasks import one_error, seconds_left
from shoal.trust.answer import KeptAnswer, sent_masks
from shoal.trust.audit import MAX_AUDIT_BYTES, is_whole
from shoal.trust.consensus import (
    Disputed,
    HopCheck,
    NamedHop,
    ReplicaWork,
    commitment,
    compare,
)
from shoal.trust.rows import WINDOW, row_log, windows
from shoal.types import Numerics, PeerId
from shoal.wire.payload import encoded_bytes

LEAST_S = 40.0
"""What replicas and third parties have at least, all together."""
MOST_S = 300.0
COMPUTE_SHARE = 1 / 2
"""Of that time, what replicas have to open and to compute."""
SIGN_SHARE = 1 / 8
"""Of that time, what hops have to commit, and the same again to sign: at least ``ENOUGH_S``. What is left is
for third parties: whoever stalls takes none of theirs."""
SIGN_WITHIN_S = 10.0
"""The most of it."""
REVEAL_WITHIN_S = 5.0
THIRD_TRIES = 3
"""Third parties that are asked for one check, those that give nothing among them."""
AUDITOR_SHARE = 0.5
"""Of the time that is left, what a third party has."""
NOT_EXACT = "replicas can be compared where bits are the same everywhere: ask for int8 or int4 on the CPU"


@dataclass(frozen=True, slots=True)
class _Replica:
    """One route over which the answer went, with what its hops have signed."""

    ring: Ring
    receipts: AnswerReceipts
    works: list[ReplicaWork | None]


@dataclass(slots=True)
class _Found:
    """What has come of one answer by now."""

    results: list[AuditResult] = field(default_factory=list[AuditResult])
    faults: list[str] = field(default_factory=list[str])
    rows: int = 0
    """Rows through blocks that third parties have computed."""


class Consensus:
    """For one client."""

    def __init__(self, rings: Rings, auditors: AuditorFinder, findings: Findings) -> None:
        self._replicas = Replicas(rings, findings)
        self._rings = rings
        self._auditors = auditors
        self._findings = findings

    async def protect(
        self, session: Session, prompt: Sequence[int], said: Sequence[int], sampling: Sampling | None
    ) -> tuple[AnswerReceipts | None, Protection]:
        """Have an answer that a session still holds computed by replicas. Never raises for it.

        Args:
            said: the answer's tokens.
            sampling: as of ``pull_receipts``.
        """
        within_s, began = _within_s(session), trio.current_time()
        until, computed_until = began + within_s, began + COMPUTE_SHARE * within_s
        found = _Found()
        try:
            text = await held_text(session, prompt, said, sampling)
            rows = await self._rows(session, text)
        except ShoalError as error:
            return None, Protection("consensus", "fast", faults=(error.message,))
        async with self._replicas.over(session, text, rows, found.faults, computed_until) as rings:
            replicas = await self._signed(
                session, rings, text, found, min(SIGN_WITHIN_S, SIGN_SHARE * within_s)
            )
            whole = await self._compared(session, replicas, rows, found, until)
        kept, faults = replicas[0].receipts.kept, replicas[0].receipts.faults
        found.faults += [fault.what for fault in faults]
        reached = whole and len(replicas) > 1 and is_whole(kept, faults)
        protection = Protection(
            "consensus",
            "consensus" if reached else "fast",
            tuple(h.peer for h, work in zip(kept.hops, replicas[0].works, strict=True) if work is not None),
            tuple(found.results),
            faults=tuple(found.faults),
            replicas=tuple(tuple(hop.peer for hop in one.receipts.kept.hops) for one in replicas),
            extra=_extra(kept, len(replicas), found.rows),
        )
        return replicas[0].receipts, protection

    async def _rows(self, session: Session, text: AnswerText) -> list[bytes]:
        """What the first hop was sent. Raises NotAllowed: replicas would not give the same bits."""
        if session.ends.given or not Numerics.parse(str(session.ring.numerics)).exact:
            raise NotAllowed(NOT_EXACT)
        if session.ends.pictures.loose:
            raise NotAllowed("steps say of its images what no receipt does, and no replica is told so")
        row_bytes = encoded_bytes(1, session.shape.hidden_size, session.ring.codec)
        if text.tokens * row_bytes > MAX_AUDIT_BYTES:
            raise NotAllowed(f"{text.tokens} tokens are too many for replicas: their rows are over 64 MiB")
        rows = await session.sent_rows(text.tokens)
        if len(rows) != text.tokens:
            raise NotAllowed("what was sent to the first hop was not kept, so no replica can begin with it")
        return rows

    async def _signed(
        self, session: Session, rings: Sequence[Ring], text: AnswerText, found: _Found, within_s: float
    ) -> list[_Replica]:
        """What the hops of all replicas have signed, once all have committed to it; the answer's first.

        Args:
            within_s: to commit, and the same again to sign.
        """
        nonce, everybody = os.urandom(16), [session.ring, *rings]
        committed: dict[int, list[bytes | ShoalError]] = {}
        signed: dict[int, AnswerReceipts] = {}

        async def commit(number: int) -> None:
            committed[number] = await everybody[number].places.commitments(nonce, text.tokens, within_s)

        async def sign(number: int) -> None:
            ring = everybody[number]
            signed[number] = await signed_text(ring, session.shape, text, nonce, within_s)

        for step in (commit, sign):  # nobody shows anything before all have committed
            with one_error():
                async with trio.open_nursery() as nursery:
                    for number in range(len(everybody)):
                        nursery.start_soon(step, number)
        replicas = list[_Replica]()
        for number, ring in enumerate(everybody):
            receipts = signed[number]
            works = self._works(number, ring, receipts, committed[number], within_s, found)
            replicas.append(_Replica(ring, receipts, works))
        return replicas

    def _works(
        self,
        number: int,
        ring: Ring,
        receipts: AnswerReceipts,
        committed: Sequence[bytes | ShoalError],
        within_s: float,
        found: _Found,
    ) -> list[ReplicaWork | None]:
        """What of a replica can be compared: hops whose receipts hold, and are those they committed to."""
        kept, works = receipts.kept, list[ReplicaWork | None]()
        unsound = {fault.hops[0]: fault for fault in receipts.faults if len(fault.hops) == 1}
        for index, (hop, said) in enumerate(zip(kept.hops, committed, strict=True)):
            work: ReplicaWork | None = None
            if isinstance(said, ShoalError):
                found.faults.append(f"{hop.peer} commits to nothing: {said.message}")
                self._findings.hold_against(hop.peer, fault_share(said, within_s, late=WHOLE_FAULT))
            elif index in unsound:
                if unsound[index].kind == "missing" and index not in ring.lost:
                    self._findings.hold_against(hop.peer, WHOLE_FAULT)  # it has committed and shows nothing
                if number:  # those of the answer's own hops are told in any case
                    found.faults.append(f"of replica {number}, {unsound[index].what}")
            elif said != commitment(kept.nonce, hop.peer, kept.receipts(index)):
                # No conviction: it needs no more than a version that signs what it has when it is asked.
                found.faults.append(f"{hop.peer} shows other receipts than it had committed to")
                self._findings.hold_against(hop.peer, WHOLE_FAULT)
            else:
                at = place_of(self._rings, ring.route[index].address)
                came = tuple(one.came for one in hop.receipts)
                work = ReplicaWork(at, came, tuple(one.went for one in hop.receipts))
            works.append(work)
        return works

    async def _compared(
        self,
        session: Session,
        replicas: Sequence[_Replica],
        rows: Sequence[bytes],
        found: _Found,
        until: float,
    ) -> bool:
        """Whether the answer's own rows are confirmed at every hop. Names who has signed others."""
        sent, kept = row_log(rows), replicas[0].receipts.kept
        roots = [sent.window(number)[1] for number in range(windows(len(rows)))]
        checks: dict[int, list[HopCheck]] = {}
        works = [one.works for one in replicas]
        while (seen := compare(roots, works, checks)).disputed is not None:
            hop = seen.disputed.hop
            check = await self._third(session, replicas, rows, seen.disputed, checks, found, until)
            if check is None:
                found.faults.append(f"hop {hop} could not be confirmed: no third party was to be had")
                break
            # Who computes more of it now takes the place of what it had computed before.
            others = [c for c in checks.get(hop, ()) if c.by != check.by and not (c.at.own and check.at.own)]
            checks[hop] = [*others, check]
            tokens = min((seen.disputed.window + 1) * WINDOW, kept.tokens)
            found.rows += tokens * len(kept.hops[hop].span)
        for named in seen.named:
            await self._name(named, replicas[named.replica].receipts.kept, found)
        self._findings.contradicted(seen.alone)
        if seen.open:
            found.faults.append(seen.open)
        settled = seen.disputed is None and not seen.open
        return settled and all(seen.confirmed) and all(0 in right for right in seen.right)

    async def _third(
        self,
        session: Session,
        replicas: Sequence[_Replica],
        rows: Sequence[bytes],
        disputed: Disputed,
        checks: Mapping[int, Sequence[HopCheck]],
        found: _Found,
        until: float,
    ) -> HopCheck | None:
        """What a third party makes of the rows that a hop was given; ``None``: there is none."""
        hop, count = disputed.hop, min((disputed.window + 1) * WINDOW, len(rows))
        given = rows[:count] if hop == 0 else await self._revealed(replicas, disputed, count, until)
        if given is None:
            return None
        ring = session.ring
        before = [check for check in checks.get(hop, ()) if len(check.went) > disputed.window]
        job = AuditJob(session.shape, ring.numerics, ring.codec, ring.route[hop].span, given)
        tried = {PeerId(other.peer) for one in replicas for other in one.receipts.kept.hops}
        tried |= {PeerId(peer) for check in before for peer in check.at.peers}
        near = [check.at for check in before]
        near += [work.at for one in replicas if (work := one.works[hop]) is not None]
        # What it has computed already was contradicted: then its weights are checked, and its word decides.
        checked = any(check.at.own for check in checks.get(hop, ()))
        own = not any(check.checked for check in before) and await self._auditors.own.can(job)
        for _ in range(THIRD_TRIES):
            here, own = own, False
            auditor = (
                self._auditors.own(checked=checked)
                if here
                else self._auditors.peer(session, job, tried, near)
            )
            if auditor is None:
                return None
            left_s = AUDITOR_SHARE * seconds_left(until)
            done = await computed(auditor, job, trio.current_time() + left_s)
            if not isinstance(done, ShoalError):
                made, masks = row_log(done), _masks(session, replicas[0].receipts.kept)[hop]
                went = tuple(made.window(n, masks[n])[1] for n in range(disputed.window + 1))
                return HopCheck(auditor.name, auditor.at, went, here and checked)
            found.faults.append(f"{auditor.name} is no third party: {done.message}")
            for peer in auditor.at.peers:
                tried.add(PeerId(peer))
                self._findings.hold_against(peer, fault_share(done, left_s))
        return None

    async def _revealed(
        self, replicas: Sequence[_Replica], disputed: Disputed, count: int, until: float
    ) -> list[bytes] | None:
        """The rows that a hop was given, from the hop before of whichever replica shows them."""
        for number in disputed.givers:
            one = replicas[number]
            work = one.works[disputed.hop]
            peer, ring = one.receipts.kept.hops[disputed.hop - 1].peer, one.ring
            needs_s = (
                count
                * encoded_bytes(1, one.receipts.kept.width, ring.codec)
                / ring.places.link_bytes_s(disputed.hop - 1)
            )
            # By the link's speed, and half of what is left at most: others may have to show them instead.
            within_s = min(REVEAL_WITHIN_S + 2 * needs_s, AUDITOR_SHARE * seconds_left(until))
            try:
                shown = await ring.sent_rows(disputed.hop - 1, count, within_s)
            except ShoalError as error:
                self._findings.hold_against(peer, fault_share(error, within_s - needs_s))
                continue
            log = row_log(shown)
            if work and all(log.window(n)[1] == work.came[n] for n in range(disputed.window + 1)):
                return shown
            self._findings.hold_against(peer, SHARED_FAULT)
        return None

    async def _name(self, named: NamedHop, kept: KeptAnswer, found: _Found) -> None:
        hop = kept.hops[named.hop]
        who = f"hop {named.hop} ({hop.peer}, blocks {hop.span}) of " + (
            f"replica {named.replica}" if named.replica else "the answer"
        )
        first, last = named.window * WINDOW, min((named.window + 1) * WINDOW, kept.tokens) - 1
        what = (
            f"{who} has signed other rows than its blocks of this model give, at tokens {first} to "
            f"{last}, as {' and '.join(named.by)} found: it is avoided from now on"
        )
        result = AuditResult(
            named.hop, hop.peer, hop.span, kept.tokens, "cheat", named.by, what, replica=named.replica
        )
        found.results.append(result)
        try:
            await self._findings.convict(hop.peer, kept.digest, hop.span)
        except ShoalError as error:
            found.faults.append(f"what was found is not written down: {error.message}")


def _masks(session: Session, kept: KeptAnswer) -> list[list[int]]:
    """By hop and window, the positions of which hops must have sent rows: as the client knows them."""
    received = session.ring.received.copy(kept.tokens)
    return [sent_masks(kept, index, received) for index in range(len(kept.hops))]


def _extra(kept: KeptAnswer, replicas: int, checked: int) -> float:
    """What was computed beyond the answer's own rows, relative to these."""
    own = kept.tokens * sum(len(hop.span) for hop in kept.hops)
    return replicas - 1 + checked / own


def _within_s(session: Session) -> float:
    """How long all of it may take: about as long as the answer did, as a prefill takes no longer."""
    step_s = sum(pace.usual_s or 0.0 for _, pace in session.ring.paces)
    return min(MOST_S, LEAST_S + step_s * len(session.token_ids))
