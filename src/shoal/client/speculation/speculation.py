"""The loop of an answer whose tokens are guessed ahead.

While no guess is on its way, tokens come as without any, and the guesses that might have been sent are
compared with them: what a drafter is worth is known before it costs anything. Once :func:`choose_plan` says
that it pays, guesses are sent, several steps at once, and each step that comes back gives as many tokens as
were right. They are the model's own tokens either way (:meth:`shoal.client.session.Session.verify`).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Container, Sequence

import trio

from shoal.client.ring.results import NextToken, Returned
from shoal.client.sampling import Sampler
from shoal.client.session import Session
from shoal.client.speculation.acceptance import Acceptance
from shoal.client.speculation.controller import OFF
from shoal.client.speculation.costs import StepCosts
from shoal.client.speculation.counts import SpeculationCounts
from shoal.client.speculation.drafters import Drafter, Guess, SlowDrafter
from shoal.client.speculation.gain import Gain
from shoal.client.speculation.sources import Plans, Sources
from shoal.errors import ShoalError

log = logging.getLogger(__name__)

PLANNED = 16
"""Steps after which plans are made anew, by what steps cost then."""
LEAST_LIKELY = 0.04
"""A guess is not sent where it and all before it are right less often than this."""


class Speculation:
    """Continues one answer in ``session``, whose prompt has been computed.

    Args:
        model: what guesses beside the n-grams, if anything does; closed with this.
        counts: told of all that is guessed. Nothing is where it says why not.
        ends: tokens that end the answer.
        text: the prompt and the first token of the answer.
    """

    def __init__(
        self,
        session: Session,
        sampler: Sampler,
        ngrams: Drafter,
        model: SlowDrafter | None,
        counts: SpeculationCounts,
        ends: Container[int],
        text: Sequence[int],
    ) -> None:
        self._session = session
        self._sampler = sampler
        self._ends = ends
        self._counts = counts
        self._acceptance = Acceptance()
        self._costs = StepCosts()
        self._plans = Plans(self._acceptance, self._costs, session.step_rows)
        self._sources = Sources(ngrams, model, self._plans)
        self._gain = Gain()
        self._verified: deque[NextToken] = deque()
        self._guesses: deque[Guess] = deque()  # of what is on its way beyond the certain token, in order
        self._plan = OFF
        self._steps = 0
        self._last = trio.current_time()
        self._survived = len(session.reroutes)
        if not counts.off:
            self._sources.learn(text)

    async def advance(self, token: int, left: int) -> NextToken:
        """The token that follows ``token``, which is the last one that was given out.

        Args:
            left: tokens that the answer may still have, this one among them.

        Raises:
            ShoalError: as :meth:`Session.verify`.
        """
        if self._counts.off:
            return await self._session.advance([token], self._sampler, more=left > 1)
        if self._verified:
            return self._verified.popleft()
        likely: Sequence[Guess] = ()
        if not self._guesses:
            likely = await self._sources.candidates(resting=self._gain.resting)
        drafted = bool(self._guesses) and self._guesses[0].draft_s > 0
        if self._guesses or self._pays(likely, left):
            tokens = await self._ahead(token, left)
        else:
            tokens = [await self._plainly(token, left, likely)]
        token_ids = [token.token for token in tokens]
        if drafted:
            await self._sources.compare(token_ids)
        self._sources.learn(token_ids)
        self._counts.draft_off = self._sources.why_off or self._counts.draft_off
        self._verified.extend(tokens[1:])
        return tokens[0]

    def close(self) -> None:
        """Take back the guesses that are on their way."""
        self._sources.close()
        if self._guesses:
            self._session.roll_back(len(self._session.token_ids))

    def _pays(self, likely: Sequence[Guess], left: int) -> bool:
        """Whether to begin to send guesses."""
        self._plan = OFF
        if left > 1 and self._costs.known and not self._gain.resting and self._session.takes_back:
            self._plan = self._sources.best(likely)
        return self._plan.window > 0

    async def _plainly(self, token: int, left: int, likely: Sequence[Guess]) -> NextToken:
        """One token, without guesses; what would have been guessed is compared with it."""
        advanced = await self._session.advance([token], self._sampler, more=left > 1)
        if (took_s := self._since_last()) is not None:
            if (returned := advanced.returned) is not None:
                self._note_step(returned)
                self._costs.note_own(took_s - returned.took_s)
            self._gain.note_plain(took_s)
        for guess in likely:
            self._acceptance.note(guess.source, guess.token == advanced.token)
        return advanced

    async def _ahead(self, token: int, left: int) -> list[NextToken]:
        """What the oldest step gives, once as many are under way as the plan says."""
        if self._guesses and (likely := await self._sources.guess(self._session.ahead[1:], 1)):
            self._plan = self._sources.best(likely)
        await self._send(token, left)
        if not self._session.ahead:  # the session is lost, and is mended on the way
            self._guesses.clear()
            return [await self._plainly(token, left, ())]
        tokens = await self._session.verify(self._sampler, self._ends)
        if (returned := tokens[0].returned) is not None:
            self._note_step(returned)
        self._compare(tokens)
        if (took_s := self._since_last()) is not None:
            self._gain.note_ahead(len(tokens), took_s)
        self._counts.gain = self._gain.ratio
        return tokens

    def _note_step(self, returned: Returned) -> None:
        self._costs.note_step(returned.rows, returned.took_s, returned.times, alone=returned.step.alone)
        self._steps += 1
        if self._steps % PLANNED == 0:
            self._plans.forget()

    def _since_last(self) -> float | None:
        """Seconds since the last token came; what was verified with it took none. ``None`` where the session
        has survived a loss meanwhile, which says nothing of guessing."""
        last, self._last = self._last, trio.current_time()
        survived, self._survived = self._survived, len(self._session.reroutes)
        return self._last - last if survived == self._survived else None

    async def _send(self, token: int, left: int) -> None:
        """Send steps until as many are under way as the plan says, or nothing is left to guess."""
        session = self._session
        while True:
            ahead = session.ahead
            certain = [] if ahead else [token]
            # Of the last token nothing is wanted that follows it.
            most = min(left - 1 - len(self._guesses), session.room - len(ahead) - len(certain))
            if not certain and (session.in_flight >= self._plan.depth or session.answered):
                return
            most = min(most, self._plan.window, session.step_rows - len(certain))
            guesses = self._likely(await self._sources.guess(ahead[1:], most))
            if not certain and not guesses:
                return
            try:
                await session.send_ahead([*certain, *(guess.token for guess in guesses)])
            except ShoalError as error:
                log.info("no guesses: %s", error.message)
                return
            self._guesses.extend(guesses)
            self._counts.steps += bool(guesses)
            for guess in guesses:
                self._counts.note_sent(guess.source)

    def _likely(self, guesses: Sequence[Guess]) -> list[Guess]:
        """Those that are likely enough, with all before them that nothing is known of yet."""
        chance = 1.0
        for guess in self._guesses:
            chance *= self._acceptance.likely(guess.source)
        kept: list[Guess] = []
        for guess in guesses:
            chance *= self._acceptance.likely(guess.source)
            if chance < LEAST_LIKELY:
                break
            kept.append(guess)
        return kept

    def _compare(self, tokens: Sequence[NextToken]) -> None:
        """Learn which guesses were right, and forget those that were taken back."""
        for token in tokens:
            if not self._guesses:
                break
            guess = self._guesses.popleft()
            self._acceptance.note(guess.source, guess.token == token.token)
            if guess.token == token.token:
                self._counts.note_right(guess.source)
        if not self._session.ahead:
            self._guesses.clear()
