"""From what was asked to deltas: a session, a grammar where there is one, and each choice after the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

import trio

from shoal.client.audits.audits import Audits
from shoal.client.generate import Delta, generate
from shoal.client.prompt_scores import score_prompt
from shoal.client.receipts.pull import pull_receipts
from shoal.client.sampling import Sampling
from shoal.client.scores import TokenScore
from shoal.client.session import Session
from shoal.client.speculation.draft_holder import DraftHolder
from shoal.client.timing import Timing
from shoal.client.vision.pictures import SeenPicture
from shoal.errors import ShoalError, UsageError
from shoal.gateway.access.keys import Caller
from shoal.gateway.api.request import GenerationRequest
from shoal.gateway.grammar.grammar import Grammars
from shoal.gateway.metrics import GatewayMetrics
from shoal.gateway.page.requests import Record, Records
from shoal.gateway.prefixes import Lease, Prefixes
from shoal.types import ProtectionLevel

OnDelta = Callable[[int, Delta], Awaitable[None]]
"""Is given each delta, with the number of its choice."""
OnScores = Callable[[list[TokenScore | None]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Answers:
    """Gives answers. The caller holds a turn; what it is given is told to ``records`` and ``metrics``."""

    prefixes: Prefixes
    grammars: Grammars
    records: Records
    metrics: GatewayMetrics
    speculate: bool
    """Whether tokens are guessed ahead where a request does not say."""
    audits: Audits
    protection: ProtectionLevel
    """Of answers for which neither the request nor the key names one."""
    draft: DraftHolder | None
    """Has the draft model, if one is set; models that it cannot guess for are answered without it."""

    async def give(
        self, asked: GenerationRequest, caller: Caller, record: Record, take: OnDelta, take_scores: OnScores
    ) -> None:
        """Every choice of the answer, delta by delta.

        The choices come one after the other over one session, which rolls back to the prompt between them:
        the prompt is computed once, and ``n`` choices hold no more KV than one.

        Raises:
            ShoalError: before any delta, or amid them.
        """
        asked = replace(asked, protect=asked.protect or caller.protect or self.protection)
        model = asked.model
        looking = model.looking if asked.images else None
        seen = await looking.look(model.local, asked.images, asked.placed) if looking is not None else []
        take_all = partial(self._choices, record=record, seen=seen, take=take, take_scores=take_scores)
        lease = await self.prefixes.lease(asked, caller)
        record.prompt_tokens += len(asked.prompt)  # before, nobody can have computed any of it
        self.metrics.prompt_tokens.labels(model.id).inc(len(asked.prompt))
        try:
            told = record.tokens
            try:
                await take_all(lease, asked.within(lease.tokens))
            except UsageError:
                raise
            except ShoalError:
                # A kept session may have died while it waited; nothing was said yet, so a new one may.
                if not lease.used or record.tokens > told:
                    raise
                lease.close()
                lease = await self.prefixes.fresh(asked, caller)
                await take_all(lease, asked.within(lease.tokens))
        except BaseException:
            lease.close()
            raise
        if asked.turns and not record.found_out and model.both is None:  # an encoder reads each prompt anew
            await self.prefixes.keep(lease)
        else:
            lease.close()

    async def _choices(
        self,
        lease: Lease,
        asked: GenerationRequest,
        *,
        record: Record,
        seen: Sequence[SeenPicture],
        take: OnDelta,
        take_scores: OnScores,
    ) -> None:
        session = lease.session
        record.follow(session)
        if session.encoder is not None:
            self.metrics.reroutes.labels(asked.model.id).inc(len(session.encoder.reroutes))
        if asked.echo:
            top = asked.sampling.top_logprobs
            await take_scores([] if top is None else await score_prompt(session, asked.prompt, top))
        for choice in range(asked.choices if asked.max_tokens else 0):
            await self._choice(session, asked, choice, record, take, seen)

    async def _choice(
        self,
        session: Session,
        asked: GenerationRequest,
        choice: int,
        record: Record,
        take: OnDelta,
        seen: Sequence[SeenPicture],
    ) -> None:
        model = asked.model
        timing = Timing()
        prompt = session.prompt_of(asked.prompt)
        constraint = await self.grammars.constrain(model, asked.grammar) if asked.grammar else None
        guessing = self.speculate if asked.speculate is None else asked.speculate
        draft = self.draft if guessing and asked.draft else None
        if draft is not None and (why := await draft.why_unfit(model.local)):
            timing.speculation.draft, timing.speculation.draft_off, draft = draft.name, why, None
        deltas = generate(
            session,
            prompt,
            asked.detokenizer(),
            sampling=asked.seeded(choice),
            max_tokens=asked.max_tokens,
            stop=asked.stop,
            end_tokens=model.local.end_tokens,
            constraint=constraint,
            timing=timing,
            speculate=guessing,
            draft=draft,
            pictures=seen,
        )
        said = list[int]()
        metrics, before, reroutes = self.metrics, trio.current_time(), len(session.reroutes)
        between = metrics.between.labels(model.id)
        tokens = metrics.generation_tokens.labels(model.id)
        async with aclosing(deltas):
            async for delta in deltas:
                now = trio.current_time()
                if record.ttft_s is None:
                    metrics.ttft.labels(model.id).observe(now - record.arrived)
                elif timing.tokens > 1:
                    between.observe(now - before)
                before = now
                tokens.inc()
                if len(session.reroutes) > reroutes:
                    metrics.reroutes.labels(model.id).inc(len(session.reroutes) - reroutes)
                    reroutes = len(session.reroutes)
                    record.follow(session)
                self.records.token(record)
                said += delta.token_ids
                if delta.finish_reason is not None:
                    record.follow(session)
                    record.measured(timing)
                    # What the answer's own echo or first choice has computed was found in no cache.
                    found = 0 if choice or asked.echo else timing.reused
                    record.cached_tokens += found
                    metrics.cached_tokens.labels(model.id).inc(found)
                    metrics.ended.labels(model.id, delta.finish_reason).inc()
                    metrics.note_speculation(model.id, timing.speculation)
                    if asked.checked:
                        # Asking and auditing take seconds, and what came of it is told with the end alone.
                        last = replace(delta, finish_reason=None, stop_string=None, last_text=True)
                        await take(choice, last)
                        delta = Delta("", (), delta.finish_reason, None, delta.stop_string)  # noqa: PLW2901
                    chosen = None if constraint else asked.seeded(choice)
                    await self._protect(session, asked, said, chosen, timing.reused, record)
                await take(choice, delta)

    async def _protect(
        self,
        session: Session,
        asked: GenerationRequest,
        said: Sequence[int],
        chosen: Sampling | None,
        reused: int,
        record: Record,
    ) -> None:
        """Have the hops sign a choice, and audit what is due of it, as the request asks for."""
        level, prompt = asked.protect or self.protection, session.prompt_of(asked.prompt)
        receipts, protection = await self.audits.protect(session, prompt, said, chosen, level, reused)
        record.protected(protection)
        if asked.receipts:
            record.signed(receipts or await pull_receipts(session, prompt, said, chosen))
