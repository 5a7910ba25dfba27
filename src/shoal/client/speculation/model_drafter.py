"""Guesses by a draft model for one answer: what it would say next, drawn as the answer's tokens are.

Greedy answers are guessed greedily. With a temperature the draft model's own probabilities meet the numbers
that the answer's tokens are drawn by (:func:`shoal.client.sampling.draw`), so that two models that mostly
agree mostly draw the same.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Protocol

import trio

from shoal.client.sampling import Sampler
from shoal.client.speculation.draft_model import DraftModel
from shoal.client.speculation.drafters import Guess
from shoal.errors import LocalProtocolError, ShoalError, StepFailed
from shoal.executor.arrays import Floats
from shoal.types import SessionId

BEHIND = 16
"""Tokens that are appended in passing; more are appended meanwhile, while others guess."""
PIECE = 256
"""Tokens of a prompt that are appended at once: guesses of other answers wait no longer."""
SMOOTH = 0.2
"""What a new time counts for."""
LATE = 4
"""Times what guesses usually take: after that, one goes on without them."""
LEAST_LATE_S = 0.02

log = logging.getLogger(__name__)


class DraftLender(Protocol):
    """Who has the draft model."""

    expected_s: float
    """Seconds that a token may take."""

    def start_soon(self, drafter: ModelDrafter) -> None:
        """Have :meth:`ModelDrafter.catch_up` run."""
        ...

    async def borrow(self) -> DraftModel:
        """The model, loaded if need be; give it back. Raises ShoalError where it cannot be loaded."""
        ...

    def give_back(self) -> None: ...


class ModelDrafter:
    """For one answer. Nothing is loaded and nothing computed before it is worth it.

    Args:
        prompt: tokens of the prompt.
        tokens: of prompt and answer, at most.
        vocab: tokens that the answer's model knows; the draft model's may be padded to more.
    """

    source = "draft"

    def __init__(
        self, lender: DraftLender, sampler: Sampler, *, prompt: int, tokens: int, vocab: int
    ) -> None:
        self.draft_s = lender.expected_s
        self.why_off = ""
        self._lender = lender
        self._sampler = sampler
        self._prompt = prompt
        self._tokens = tokens
        self._vocab = vocab
        self._session = SessionId(os.urandom(16))
        self._model: DraftModel | None = None
        self._text: list[int] = []
        self._held: list[int] = []  # tokens that its KV holds, some of them guesses
        self._same = 0  # how many of those are known to be the text's
        self._next: int | None = None  # what it has said to follow what is held
        self._catching_up: trio.CancelScope | None = None
        self._closed = False

    @property
    def ready(self) -> bool:
        """As :attr:`SlowDrafter.ready`."""
        idle = self._model is not None and self._catching_up is None and not self.why_off
        return idle and len(self._text) - self._same <= BEHIND

    def prepare(self) -> None:
        """As :meth:`SlowDrafter.prepare`."""
        if not (self.ready or self._catching_up or self.why_off or self._closed):
            self._catching_up = trio.CancelScope()
            self._lender.start_soon(self)

    def learn(self, token_ids: Sequence[int]) -> None:
        """As :meth:`Drafter.learn`."""
        self._text += token_ids
        self._compare()

    async def guess(self, ahead: Sequence[int], count: int) -> list[Guess]:
        """As :meth:`Drafter.guess`; fewer, or none, where it takes much longer than it does mostly."""
        text = [*self._text, *ahead]
        count = min(count, self._tokens - len(text))
        if count < 1 or not self.ready or self._model is None:
            return []
        position = self._common(text)
        guessed: list[int] = []
        if position == len(text) == len(self._held) and self._next is not None:
            guessed.append(self._next)  # it has said so before
        else:
            position = min(position, len(text) - 1)
        new = text[position:] or guessed[:]
        began = trio.current_time()
        within_s = max(LEAST_LATE_S, LATE * count * self.draft_s)
        if len(guessed) < count:
            with trio.move_on_after(within_s) as waiting:
                await self._say(self._model, text, position, new, count, guessed)
            self._note(trio.current_time() - began, count)
            if waiting.cancelled_caught:
                self._cut(position)
        return [Guess(token, self.source, self.draft_s) for token in guessed[:count]]

    async def catch_up(self) -> None:
        """Append what is missing of the text; the model is borrowed, and loaded, with the first of it."""
        scope = self._catching_up
        if scope is None:
            return
        try:
            with scope:
                if self._model is None:
                    await self._begin()
                while self._model is not None and len(self._text) - self._same > BEHIND:
                    piece = self._text[self._same : self._same + PIECE]
                    self._cut(self._same)
                    await self._model.guess(self._session, self._same, piece, 0, _no_choice, [])
                    self._held += piece
                    self._compare()
        except Exception as error:  # noqa: BLE001  as in _say
            self._give_up(error)
        finally:
            self._catching_up = None

    def close(self) -> None:
        """As :meth:`SlowDrafter.close`."""
        self._closed = True
        if self._catching_up is not None:
            self._catching_up.cancel()
        if self._model is not None:
            self._model.free(self._session)
            self._model = None
            self._lender.give_back()

    async def _begin(self) -> None:
        model = await self._lender.borrow()
        try:
            self._tokens = min(self._tokens, model.context)
            await model.open(self._session, self._tokens)
        except BaseException:
            self._lender.give_back()
            raise
        self._model, self.draft_s = model, model.token_s

    async def _say(
        self,
        model: DraftModel,
        text: Sequence[int],
        position: int,
        new: Sequence[int],
        count: int,
        guessed: list[int],
    ) -> None:
        """Append ``new`` from ``position`` on, and fill ``guessed`` up to ``count``."""
        known = list(guessed)

        def choose(logits: Floats, more: Sequence[int]) -> int:
            return self._sampler.foresee(logits[: self._vocab], [*text, *known, *more], self._prompt)

        found: list[int] = []
        self._cut(position)
        try:
            await model.guess(self._session, position, new, count - len(known), choose, found)
        except Exception as error:  # noqa: BLE001  a model's own code: no reason to end the answer
            self._give_up(error)
            return
        finally:
            guessed += found
        self._held += [*new, *found[:-1]]
        self._next = found[-1]
        self._compare()

    def _common(self, text: Sequence[int]) -> int:
        """How many of the first tokens of ``text`` are held."""
        position = self._same
        while position < min(len(self._held), len(text)) and self._held[position] == text[position]:
            position += 1
        return position

    def _cut(self, position: int) -> None:
        """Whatever is held beyond ``position`` is not any more."""
        del self._held[position:]
        self._same = min(self._same, position)
        self._next = None

    def _compare(self) -> None:
        self._same = self._common(self._text)

    def _note(self, took_s: float, count: int) -> None:
        self.draft_s = (1 - SMOOTH) * self.draft_s + SMOOTH * took_s / count

    def _give_up(self, error: Exception) -> None:
        """It is of no more use for this answer, which goes on without."""
        self.why_off = draft_error(error).message
        log.info("no more guesses by the draft model: %s", self.why_off)


def draft_error(error: Exception) -> ShoalError:
    """Why the draft model is off. What is no error of ours is logged whole: it may be a mistake there."""
    if isinstance(error, ShoalError):
        return error
    log.warning("the draft model failed", exc_info=error)
    return StepFailed(f"the draft model failed: {type(error).__name__}: {error}")


def _no_choice(logits: Floats, guessed: Sequence[int]) -> int:
    raise LocalProtocolError("a choice where nothing is to be guessed")
