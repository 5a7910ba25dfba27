"""Sends canaries: requests of nobody, under identities that nobody knows, audited at every hop.

See :mod:`shoal.trust.canary` for what they are, and :mod:`.canary` for what they are modelled on.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from random import SystemRandom

import trio

from shoal.client.audits.auditors import OtherIdentity
from shoal.client.audits.audits import Audits
from shoal.client.audits.canary import SeenAnswer, canary_prompt, word_tokens
from shoal.client.audits.protection import FAST, Protection
from shoal.client.audits.purse import CanaryPurse
from shoal.client.generate import generate
from shoal.client.ring.opener import SessionOpener
from shoal.client.ring.rings import Rings
from shoal.client.seq2seq.sides import Side
from shoal.client.speculation.draft_holder import DraftHolder
from shoal.client.timing import Timing
from shoal.config import Settings
from shoal.errors import ShoalError
from shoal.models.store.local_model import LocalModel
from shoal.models.text.codec import TextCodec
from shoal.net.network import Network
from shoal.routing.route import routed_span
from shoal.sharing.peer_weights import PeerWeights
from shoal.swarm.member import Member
from shoal.tasks import ends_alone, one_error
from shoal.trust.audit import Chance
from shoal.trust.audit_record import AuditRecord, CanaryCounts, CanaryResult
from shoal.trust.canary import CANARY_COST, CanaryTexts, canary_pause_s, is_due
from shoal.types import Digest, Span

CANARY_WITHIN_S = 600.0
"""What a canary may take, from the moment when its identity joins the swarm."""
COUNTED_WITHIN_S = 1.0
"""What it may take to begin to write down what one came to, while this machine ends."""
MOST_MODELS = 8
"""Whose texts are kept."""

log = logging.getLogger(__name__)

OtherMember = Callable[[], AbstractAsyncContextManager[tuple[Network, Member]]]
"""A member of the same swarm under an identity that nobody knows, for as long as the block."""


@dataclass(frozen=True, slots=True)
class CanaryParts:
    """What a client's own sessions are made with, of which canaries' are made, too."""

    opener: Callable[[Rings], SessionOpener]
    codec: Callable[[LocalModel], Awaitable[TextCodec | None]]
    rings: Rings
    """The client's: what it thinks of its peers, canaries do."""
    draft: DraftHolder | None
    """Guesses ahead for them as for all others, where it can."""


class Canaries:
    """Those of one client. ``run`` must be running.

    Args:
        audits: the client's own; its answers are what canaries look like.
        member: joins the swarm as somebody else.
        identity: as :class:`Audits` has it.
    """

    def __init__(
        self,
        settings: Settings,
        audits: Audits,
        weights: PeerWeights,
        parts: CanaryParts,
        member: OtherMember,
        identity: OtherIdentity | None,
    ) -> None:
        self._settings = settings
        self._audits = audits
        self._weights = weights
        self._parts = parts
        self._member = member
        self._identity = identity
        self._texts: dict[Digest, CanaryTexts] = {}
        self.chance: Chance = SystemRandom().random
        self.counts = CanaryCounts()
        """What canaries of this client came to."""

    async def run(self) -> None:
        """Look by chance, again and again, whether one is due, until cancelled."""
        while True:
            await trio.sleep(canary_pause_s(self.chance))
            with ends_alone(log, "a canary"):
                await self.send_due()

    async def send_due(self) -> Protection | None:
        """Send a canary, if the budget allows one.

        Returns:
            What came of its audits; ``None`` where none was sent, or it got no whole answer.
        """
        seen = self._audits.recent.draw(self.chance)
        find = self._weights.store.find
        local = None if seen is None else await trio.to_thread.run_sync(find, seen.digest)
        if seen is None or local is None:
            return None
        try:
            prompt = await self._prompt(seen, local)
            rows = len(prompt) + seen.said - 1  # its last token goes through no block
            cost = rows * len(self._routed(local))
            if not prompt or not await self._set_aside(cost):
                return None
        except ShoalError as error:
            log.warning("no canary can be sent: %s", error.message)
            return None
        purse, found = CanaryPurse((CANARY_COST - 1) * cost, self.chance), None
        try:
            with one_error(), trio.fail_after(CANARY_WITHIN_S):
                found = await self._send(seen, local, prompt, purse)
        except ShoalError as error:
            log.info("a canary got no whole answer: %s", error.message)
        except trio.TooSlowError:
            log.info("a canary got no whole answer in time")
        finally:
            # Of one that is cut off, too, others get what it has not used.
            with trio.move_on_after(COUNTED_WITHIN_S, shield=True):
                await self._count(_result(found), purse.left)
        return found

    def _routed(self, local: LocalModel) -> Span:
        return routed_span(self._settings.own_blocks, local.shape.n_blocks)

    async def _prompt(self, seen: SeenAnswer, local: LocalModel) -> list[int]:
        """Raises ShoalError: the tokenizer or the template fails."""
        codec = await self._parts.codec(local)
        if local.digest not in self._texts:
            if len(self._texts) == MOST_MODELS:
                del self._texts[next(iter(self._texts))]
            words = await trio.to_thread.run_sync(word_tokens, codec, local.shape.vocab_size)
            self._texts[local.digest] = CanaryTexts(words)
        texts = self._texts[local.digest]
        prompt = await trio.to_thread.run_sync(canary_prompt, seen, texts, codec, self.chance)
        return prompt if len(prompt) + seen.said <= local.shape.context else []

    async def _set_aside(self, cost: int) -> bool:
        """Whether the budget has room for a canary, which is taken. Raises as ``AuditBook.change``."""
        budget, share = self._settings.audit_budget, self._settings.canaries

        def change(record: AuditRecord) -> tuple[AuditRecord, bool]:
            if not is_due(record.account, cost, budget, share):
                return record, False
            return record.with_account(record.account.pay_canary(CANARY_COST * cost)), True

        return await trio.to_thread.run_sync(self._audits.findings.book.change, change)

    async def _count(self, result: CanaryResult, left: int) -> None:
        """Write down what a canary came to, and give back what it has not used."""
        self.counts = self.counts.count(result)

        def change(record: AuditRecord) -> tuple[AuditRecord, None]:
            account = record.account.pay_canary(-left)
            return record.with_account(account).count_canary(result), None

        try:
            await trio.to_thread.run_sync(self._audits.findings.book.change, change)
        except ShoalError as error:
            log.warning("what a canary came to is not written down: %s", error.message)

    async def _send(
        self, seen: SeenAnswer, local: LocalModel, prompt: list[int], purse: CanaryPurse
    ) -> Protection:
        """Ask as somebody else, over the peers that gave an answer, where they still serve; then audit.

        Raises:
            ShoalError: there is no whole answer.
        """
        # Nobody pays under an identity that is used once, and no account of this machine's is named.
        settings = replace(self._settings, pin=seen.peers, max_price="", credits=False, pay_budget="")
        found = FAST
        async with self._member() as (network, member), trio.open_nursery() as nursery:
            rings = Rings(network, member, settings)
            rings.finder.reputation = self._parts.rings.finder.reputation
            rings.ends = self._parts.rings.ends
            member.directory.know([local.shape])
            await nursery.start(rings.run)
            await member.use(local.digest)
            self._introduce(member, seen)
            audits = Audits(rings, settings, self._weights, self._identity, purse)
            found = await self._ask(rings, seen, local, prompt, audits)
            nursery.cancel_scope.cancel()
        return found

    def _introduce(self, member: Member, seen: SeenAnswer) -> None:
        """Tell a new member of the peers that it is to ask: of a large swarm it knows others."""
        directory = self._parts.rings.finder.member.directory
        for peer in seen.peers:
            member.directory.used(peer)
            if raw := directory.raw(peer):
                member.hear(raw)

    async def _ask(
        self, rings: Rings, seen: SeenAnswer, local: LocalModel, prompt: list[int], audits: Audits
    ) -> Protection:
        room = min(local.shape.context, max(seen.room, len(prompt) + seen.said))
        opening = partial(self._parts.opener(rings).over, local, seen.format, Side(self._routed(local)), room)
        draft = self._parts.draft
        if draft is not None and await draft.why_unfit(local):
            draft = None
        said, timing = list[int](), Timing()
        async with opening(attested=False) as session:
            deltas = generate(
                session,
                prompt,
                None,
                sampling=seen.sampling,
                max_tokens=seen.said,
                end_tokens=local.end_tokens,
                timing=timing,
                speculate=self._settings.speculate == "auto",
                draft=draft,
            )
            async for delta in deltas:
                said += delta.token_ids
            self._texts[local.digest].keep([token for token in said if token not in local.end_tokens])
            _, found = await audits.protect(session, prompt, said, seen.sampling, "audited", timing.reused)
        return found


def _result(found: Protection | None) -> CanaryResult:
    if found is None:
        return "failed"
    if found.cheats:
        return "cheat"
    return "same" if found.audits and all(audit.verdict == "same" for audit in found.audits) else "open"
