"""Audits of one client's answers: drawn, computed, judged, remembered.

Rows are asked for while the session is open, and what follows is done before the caller goes on: an answer
says what it came to. No audit changes an answer's tokens or fails it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import trio

from shoal.client.audits.auditor_finder import AuditorFinder
from shoal.client.audits.auditors import (
    AuditJob,
    Auditor,
    OtherIdentity,
    PeerAuditor,
    computed,
    fault_share,
)
from shoal.client.audits.canary import RecentAnswers, seen_answer
from shoal.client.audits.consensus import Consensus
from shoal.client.audits.findings import Findings
from shoal.client.audits.proofs import Proofs
from shoal.client.audits.protection import FAST, AuditResult, Protection, attested_protection
from shoal.client.audits.purse import AuditPurse, BudgetPurse, CanaryPurse
from shoal.client.audits.residual import row_distance
from shoal.client.receipts.pull import AnswerReceipts, pull_receipts
from shoal.client.ring.rings import Rings
from shoal.client.sampling import Sampling
from shoal.client.seq2seq.sides import all_hops
from shoal.client.session import Session
from shoal.config import Settings
from shoal.errors import (
    ShoalError,
)
from shoal.routing.reputation import SHARED_FAULT
from shoal.sharing.peer_weights import PeerWeights
from shoal.swarm.audit_book import AuditBook
from shoal.tasks import seconds_left
from shoal.trust.answer import KeptAnswer
from shoal.trust.audit import (
    AuditTarget,
    AuditVerdict,
    Judgement,
    Opinion,
    auditable,
    differing_window,
    is_whole,
    judge,
    measurable,
    misfit_window,
    settled,
    within_reach,
)
from shoal.trust.rows import WINDOW, RowLog, row_log
from shoal.types import Numerics, PeerId, ProtectionLevel
from shoal.wire.payload import encoded_bytes

PROTECT_WITHIN_S = 10.0
"""How much later an answer ends at most, for its receipts and all audits of it together."""
REVEAL_WITHIN_S = 4.0
"""What a hop has to show the rows that it sent."""
AUDITOR_SHARE = 0.5
"""Of the time that is left, what one peer has: else one that stalls would leave nobody to ask."""
MOST_ASKED = 6
"""Auditors that are asked for one audit, those that give nothing among them."""
GIVEN = (
    "the hops of a model with an encoder and a decoder sign, and are not computed again: what its decoder "
    "begins with are no rows of tokens, and its bits are not the same everywhere"
)

LOOSE = (
    "the hops sign, and are not computed again: steps say of its images what no receipt does, who sees whom "
    "or where a row is in one, and no audit's prefill of rows is told so"
)

log = logging.getLogger(__name__)


class Audits:
    """See the module.

    Args:
        weights: models here, and blocks that proofs need and are not.
        identity: for asking peers; without one, only this machine audits.
        canary: what was set aside for one, if the answers are of that; else audits have their budget.
    """

    def __init__(
        self,
        rings: Rings,
        settings: Settings,
        weights: PeerWeights,
        identity: OtherIdentity | None,
        canary: CanaryPurse | None = None,
    ) -> None:
        self._settings = settings
        book = AuditBook(settings.paths.audits)
        self.findings = Findings(book, rings.finder.reputation, canary=canary is not None)
        self.purse: AuditPurse = canary or BudgetPurse(book, settings)
        self.recent = RecentAnswers()
        """What this client's audited answers looked like to hops."""
        self.auditors = AuditorFinder(rings, settings, weights.store, identity)
        self._consensus = Consensus(rings, self.auditors, self.findings)
        self.proofs = Proofs(settings, weights, self.auditors.own, self.findings)

    async def remember(self) -> None:
        """Hold against peers what earlier audits on this machine have shown."""
        await self.findings.remember()

    async def protect(
        self,
        session: Session,
        prompt: Sequence[int],
        said: Sequence[int],
        sampling: Sampling | None,
        level: ProtectionLevel,
        reused: int,
    ) -> tuple[AnswerReceipts | None, Protection]:
        """Have an answer signed that a session still holds, and audit what is due of it. Never raises for it.

        Args:
            said: the answer's tokens.
            sampling: as of :func:`pull_receipts`.
            reused: of the prompt's tokens, how many were not computed for it.
        """
        route = [hop for hop, _ in all_hops(session)]
        if why := _why_unsigned(session, level):
            return None, Protection(level, "fast", budget=self._settings.audit_budget, faults=(why,))
        if level == "attested" or any(hop.noise_key for hop in route):
            # An audit would show rows to peers that have not shown what they run on.
            return None, attested_protection(level, route)
        if level == "fast":
            return None, FAST
        if level in ("consensus", "proved"):
            checks = self._consensus if level == "consensus" else self.proofs
            return await checks.protect(session, prompt, said, sampling)
        until = trio.current_time() + PROTECT_WITHIN_S
        try:
            receipts = await pull_receipts(session, prompt, said, sampling)
        except ShoalError as error:
            why = f"no receipts were to be had: {error.message}"
            return None, Protection("audited", "fast", budget=self._settings.audit_budget, faults=(why,))
        if (seen := seen_answer(session, receipts.kept, sampling)) is not None:
            self.recent.note(seen)
        return receipts, await self._check(session, receipts, reused, until)

    async def _check(
        self, session: Session, receipts: AnswerReceipts, reused: int, until: float
    ) -> Protection:
        """Audit what is due of an answer, as far as there is time."""
        kept, faults = receipts.kept, receipts.faults
        bad = {hop for fault in faults for hop in fault.hops}
        signed = tuple(h.peer for i, h in enumerate(kept.hops) if h.receipts and i not in bad)
        found = Protection(
            "audited",
            "fast",
            signed,
            budget=self._settings.audit_budget,
            faults=tuple(fault.what for fault in faults),
        )
        numerics = Numerics.parse(kept.numerics)
        if session.ends.given:
            # Its decoder begins with what the encoder gave, all at once: no prefill of rows is the same.
            return replace(found, faults=(*found.faults, GIVEN))
        if session.ends.pictures.loose:
            return replace(found, faults=(*found.faults, LOOSE))
        if not numerics.exact:
            why = (
                f"by {numerics} bits are not the same everywhere, so an audit tells how far a hop is from "
                "others and shows nothing: ask for int8 or int4 of nodes that compute on the CPU"
            )
            found = replace(found, faults=(*found.faults, why))
        try:
            audits, share = await self._audit_all(session, receipts, reused, until)
        except ShoalError as error:
            return replace(found, faults=(*found.faults, f"no audit was possible: {error.message}"))
        whole = numerics.exact and is_whole(kept, faults) and all(audit.verdict == "same" for audit in audits)
        return replace(found, level="audited" if whole else "fast", audits=audits, share=share)

    async def _audit_all(
        self, session: Session, receipts: AnswerReceipts, reused: int, until: float
    ) -> tuple[tuple[AuditResult, ...], float]:
        kept, audits = receipts.kept, list[AuditResult]()
        exact = Numerics.parse(kept.numerics).exact
        found = auditable(kept, receipts.faults) if exact else measurable(kept, receipts.faults)
        row_bytes = encoded_bytes(1, kept.width, kept.codec)
        hops = within_reach(found, _shown_bytes_s(session, exact=exact), row_bytes)
        rows, share = max(0, kept.tokens - reused), 0.0
        while rows or trio.current_time() < until:
            drawn = await self.purse.draw(kept, hops, rows, row_bytes)
            rows, share = 0, drawn.share  # this answer has counted
            if drawn.target is None:
                break
            audits.append(await self._audit(session, kept, drawn.target, until))
            del hops[drawn.target.hop]
        return tuple(audits), share

    async def _audit(
        self, session: Session, kept: KeptAnswer, target: AuditTarget, until: float
    ) -> AuditResult:
        """One hop, computed again until it is clear what that shows, or no time is left."""
        rows = await self._rows(session, kept, target, until)
        if isinstance(rows, str):
            return _result(kept, target, "open", (), rows)
        numerics = Numerics.parse(kept.numerics)
        job = AuditJob(session.shape, numerics, kept.codec, target.span, rows)
        if not numerics.exact:
            return await self._measure(session, kept, target, job, until)
        opinions, asked = await self._opinions(session, kept, target, job, until)
        judgement = judge(opinions)
        by = tuple(opinion.by for opinion in opinions)
        await self._remember(kept, target, judgement)
        return _result(kept, target, judgement.verdict, by, _what(kept, target, judgement, opinions, asked))

    async def _rows(
        self, session: Session, kept: KeptAnswer, target: AuditTarget, until: float
    ) -> list[bytes] | str:
        """What a hop was given, as its receipts say; or why that is not to be had."""
        if target.hop == 0:
            rows = await session.sent_rows(target.tokens)
        else:
            rows = await self._shown(session, kept, target.hop - 1, target.tokens, until)
        if isinstance(rows, str) or (window := misfit_window(kept, target, row_log(rows))) is None:
            return rows
        if target.hop:
            self.findings.hold_against(kept.hops[target.hop - 1].peer, SHARED_FAULT)
        who = kept.hops[target.hop - 1].peer if target.hop else "this client"
        return f"{who} shows other rows than were signed for, in window {window}, so nothing is shown"

    async def _shown(
        self, session: Session, kept: KeptAnswer, hop: int, tokens: int, until: float
    ) -> list[bytes] | str:
        """The rows that a hop says it sent on, or why it shows none.

        An honest one may have no room to keep them, much to show others, a slow link, or be gone: that counts
        as a refused session does.
        """
        left_s = min(REVEAL_WITHIN_S, seconds_left(until))
        try:
            return await session.ring.sent_rows(hop, tokens, left_s)
        except ShoalError as error:
            peer = kept.hops[hop].peer
            self.findings.hold_against(peer, fault_share(error, left_s))
            return f"{peer} does not show what it sent on, so nothing is shown: {error.message}"

    async def _measure(
        self, session: Session, kept: KeptAnswer, target: AuditTarget, job: AuditJob, until: float
    ) -> AuditResult:
        """How far a hop is from an auditor, where bits are no promise. Nobody is judged by it."""
        theirs = await self._shown(session, kept, target.hop, target.tokens, until)
        if isinstance(theirs, str):
            return _result(kept, target, "open", (), theirs)
        who = f"hop {target.hop} ({kept.hops[target.hop].peer}, blocks {target.span})"
        if differing_window(kept, target, row_log(theirs)) is not None:
            self.findings.hold_against(kept.hops[target.hop].peer, SHARED_FAULT)
            return _result(kept, target, "open", (), f"{who} shows other rows than it has signed for")
        tried = {PeerId(kept.hops[target.hop].peer)}
        auditor = (
            self.auditors.own()
            if await self.auditors.own.can(job)
            else self.auditors.peer(session, job, tried)
        )
        ours = None if auditor is None else await computed(auditor, job, until)
        if auditor is None or ours is None or isinstance(ours, ShoalError):
            why = f": {ours.message}" if isinstance(ours, ShoalError) else ""
            return _result(kept, target, "open", (), f"{who} could not be audited{why}")
        width = kept.width
        apart = await trio.to_thread.run_sync(row_distance, ours, theirs, kept.codec, width)
        points = apart.fingerprint
        what = (
            f"{who} differs from {auditor.name} by {apart.residual:.1e} of the norm of its rows at most; of "
            f"the {points.points} largest elements of 32 rows {points.exponents} have another exponent, "
            f"and mantissas of the rest are {points.mean:.2f} of 128 steps apart"
        )
        return replace(
            _result(kept, target, "open", (auditor.name,), what), residual=apart.residual, fingerprint=points
        )

    async def _opinions(
        self, session: Session, kept: KeptAnswer, target: AuditTarget, job: AuditJob, until: float
    ) -> tuple[list[Opinion], list[str]]:
        """What auditors found, and why others found nothing."""
        opinions, silent = list[Opinion](), list[str]()
        tried = {PeerId(kept.hops[target.hop].peer)}
        own = await self.auditors.own.can(job)
        here = own
        for _ in range(MOST_ASKED):
            if trio.current_time() > until:
                break
            near = [opinion.at for opinion in opinions]
            auditor: Auditor | None = (
                self.auditors.own() if here else self.auditors.peer(session, job, tried, near)
            )
            here = False
            if auditor is None and own and opinions:
                auditor, own = self.auditors.own(checked=True), False
            if auditor is None:
                break
            left_s = seconds_left(until)
            if isinstance(auditor, PeerAuditor):
                tried |= {hop.address.peer for hop in auditor.route}
                left_s *= AUDITOR_SHARE
            done = await computed(auditor, job, trio.current_time() + left_s)
            if isinstance(done, ShoalError):
                silent.append(f"{auditor.name} has not audited: {done.message}")
                for peer in auditor.at.peers:
                    self.findings.hold_against(peer, fault_share(done, left_s))
                continue
            if opinions:
                await self.purse.pay(target.cost)
            opinions.append(_opinion(kept, target, auditor, row_log(done)))
            if settled(opinions):
                break
        return opinions, silent

    async def _remember(self, kept: KeptAnswer, target: AuditTarget, judgement: Judgement) -> None:
        """Hold against a hop what two auditors found; against an auditor that two others contradict, half of
        a fault: three who are one could say so of an honest one."""
        self.findings.contradicted(judgement.alone)
        if judgement.verdict == "cheat":
            await self.findings.convict(kept.hops[target.hop].peer, kept.digest, target.span)


def _opinion(kept: KeptAnswer, target: AuditTarget, auditor: Auditor, made: RowLog) -> Opinion:
    """What rows that an auditor has computed say of a hop."""
    window, root = differing_window(kept, target, made), b""
    if window is not None:
        root = made.window(window, kept.hops[target.hop].receipts[window].sent)[1]
    return Opinion(auditor.name, window, root, auditor.at)


def _shown_bytes_s(session: Session, *, exact: bool) -> list[float]:
    """How fast the link is over which the rows come that each hop was given.

    The first hop's are here, and go to an auditor over a link like that to the hop. Of inexact numerics each
    hop shows what it made of them, too.
    """
    links = [session.ring.places.link_bytes_s(index) for index in range(len(session.ring.route))]
    before = [links[0], *links[:-1]]
    return before if exact else [min(pair) / 2 for pair in zip(before, links, strict=True)]


def _result(
    kept: KeptAnswer, target: AuditTarget, verdict: AuditVerdict, by: tuple[str, ...], what: str
) -> AuditResult:
    peer = kept.hops[target.hop].peer
    return AuditResult(target.hop, peer, target.span, target.tokens, verdict, by, what)


def _what(
    kept: KeptAnswer,
    target: AuditTarget,
    judgement: Judgement,
    opinions: Sequence[Opinion],
    silent: Sequence[str],
) -> str:
    """An audit in a sentence."""
    who = f"hop {target.hop} ({kept.hops[target.hop].peer}, blocks {target.span})"
    by = " and ".join(opinion.by for opinion in opinions)
    if judgement.verdict == "same":
        return f"{who} was computed again by {by}: {target.tokens} tokens to the bit"
    if judgement.verdict == "cheat":
        window = next(o.window for o in opinions if o.window is not None and o.by not in judgement.alone)
        last = min((window + 1) * WINDOW, kept.tokens) - 1
        return (
            f"{who} has signed other rows than its blocks of this model give, at tokens {window * WINDOW} to "
            f"{last}, as {by} found: ask again, it is avoided from now on"
        )
    if judgement.near:
        return f"{who} gives other rows than {by}, of whom those who agree may be one: nobody is blamed"
    if opinions:
        return f"{who} gives other rows than {by}, and nobody else could confirm either: nobody is blamed"
    why = silent[0] if silent else "nobody else serves these blocks, and they are not on this machine"
    return f"{who} could not be audited: {why}"


def _why_unsigned(session: Session, level: ProtectionLevel) -> str:
    """Why nothing of a session is signed or audited at this level; empty where it may be."""
    if session.shape.adapter is not None and level in ("audited", "proved"):
        return "receipts, audits and proofs are of a model as it is: an answer with an adapter has none"
    if session.ends.virtual and level in ("audited", "proved", "consensus"):
        return "receipts, audits, proofs and replicas are of tokens: an answer with a soft prompt has none"
    return ""
