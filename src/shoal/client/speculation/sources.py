"""Who guesses for one answer: n-grams, which are free, and a draft model where its guesses are worth more."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.client.speculation.acceptance import Acceptance
from shoal.client.speculation.controller import OFF, WindowPlan, choose_plan, tokens_per_s
from shoal.client.speculation.costs import StepCosts
from shoal.client.speculation.drafters import Drafter, Guess, SlowDrafter

HOPED = 0.8
"""How often a draft model is hoped to be right, until that is known."""
HIDDEN_SHARE = 0.5
"""Of a step round the ring: a draft model that takes more for a token would be waited for."""
TRIED = 16
"""Tokens for which a draft model guesses without its guesses being sent, before it rests."""
REST = 64
"""Tokens for which it then rests; twice as many each time in a row."""
LONGEST_REST = 1024


class Plans:
    """The best plan by what guesses of a source are worth, kept for as long as costs are about the same."""

    def __init__(self, acceptance: Acceptance, costs: StepCosts, rows: int) -> None:
        self.costs = costs
        self.acceptance = acceptance
        self._rows = rows
        self._known: dict[tuple[float, bool], tuple[WindowPlan, float]] = {}

    def plan(self, guess: Guess) -> WindowPlan:
        """What to send ahead, where ``guess`` comes first."""
        return self._found(self.acceptance.likely(guess.source), guess.draft_s)[0]

    def speed(self, guess: Guess) -> float:
        """Tokens a second that come by it."""
        return self._found(self.acceptance.likely(guess.source), guess.draft_s)[1]

    def hopeful(self, draft_s: float) -> bool:
        """Whether a drafter that takes so long may be worth a trial."""
        plain_s = self.costs.snapshot(0.0, 0.0, self._rows).plain_s
        return draft_s < HIDDEN_SHARE * plain_s and self._found(HOPED, draft_s)[0] != OFF

    def forget(self) -> None:
        """Costs are others now."""
        self._known.clear()

    def _found(self, likely: float, draft_s: float) -> tuple[WindowPlan, float]:
        key = (round(likely, 2), draft_s > 0)
        if key not in self._known:
            seen = self.costs.snapshot(key[0], draft_s, self._rows)
            plan = choose_plan(seen)
            self._known[key] = (plan, 1 / seen.plain_s if plan == OFF else tokens_per_s(seen, plan))
        return self._known[key]


class Sources:
    """Of one answer."""

    def __init__(self, ngrams: Drafter, model: SlowDrafter | None, plans: Plans) -> None:
        self._ngrams = ngrams
        self._model = model
        self._plans = plans
        self._tried = 0
        self._rest = 0
        self._next_rest = REST

    @property
    def why_off(self) -> str:
        """Why the draft model cannot guess, if it cannot."""
        return self._model.why_off if self._model else ""

    async def compare(self, token_ids: Sequence[int]) -> None:
        """See what n-grams would have guessed, where the draft model did; :meth:`learn` comes after."""
        if self._model is None:
            return
        for number, token in enumerate(token_ids):
            for guess in await self._ngrams.guess(token_ids[:number], 1):
                self._plans.acceptance.note(guess.source, guess.token == token)

    def learn(self, token_ids: Sequence[int]) -> None:
        """As :meth:`Drafter.learn`."""
        self._ngrams.learn(token_ids)
        if self._model is not None:
            self._model.learn(token_ids)
            self._rest = max(0, self._rest - len(token_ids))

    async def guess(self, ahead: Sequence[int], count: int) -> list[Guess]:
        """As :meth:`Drafter.guess`, by whichever is worth more here."""
        free = await self._ngrams.guess(ahead, count)
        model = self._model
        if model is None or count < 1 or not self._may_try(model):
            return free
        sample = Guess(0, model.source, model.draft_s)
        better = not free or self._plans.speed(sample) > self._plans.speed(free[0])
        if not better or self._plans.plan(sample) == OFF:
            return free
        return await model.guess(ahead, count) or free

    async def candidates(self, *, resting: bool) -> list[Guess]:
        """What each of them would guess next, which then is compared with what comes.

        Args:
            resting: whether nothing will be sent for now, so that a draft model need not work.
        """
        found = await self._ngrams.guess((), 1)
        model = self._model
        if model is None or resting or not self._may_try(model):
            return found
        guess = await model.guess((), 1)
        self._tried += len(guess)
        if self._tried >= TRIED:
            self._tried = 0
            if all(self._plans.plan(sample) == OFF for sample in guess):
                self._rest, self._next_rest = self._next_rest, min(2 * self._next_rest, LONGEST_REST)
            else:
                self._next_rest = REST
        return [*found, *guess]

    def best(self, guesses: Sequence[Guess]) -> WindowPlan:
        """The plan by the one of ``guesses`` that is worth most; none without any."""
        if not guesses:
            return OFF
        return self._plans.plan(max(guesses, key=self._plans.speed))

    def close(self) -> None:
        """Give back what the draft model holds."""
        if self._model is not None:
            self._model.close()

    def _may_try(self, model: SlowDrafter) -> bool:
        """Whether to have the draft model guess; it gets ready meanwhile where it is not."""
        if self._rest or not self._plans.costs.known or not self._plans.hopeful(model.draft_s):
            return False
        model.prepare()
        return model.ready
