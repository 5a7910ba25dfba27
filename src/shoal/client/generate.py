"""The main loop: a prompt in, deltas out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal

import trio

from shoal.client.sampling import Constraint, Sampler, Sampling
from shoal.client.scores import TokenScore
from shoal.client.session import Session
from shoal.client.speculation.draft_holder import DraftHolder
from shoal.client.speculation.drafters import NgramDrafter
from shoal.client.speculation.speculation import Speculation
from shoal.client.stop_filter import StopFilter
from shoal.client.timing import Timing, traced_answer
from shoal.client.vision.pictures import SeenPicture
from shoal.errors import UsageError
from shoal.models.text.detokenizer import Detokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of streamed output."""

    text: str
    """New text; empty while a character or a possible stop string is incomplete."""
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    """Set on the last delta: ``stop`` at an end token or stop string, ``length`` at ``max_tokens``."""
    score: TokenScore | None = None
    """How likely the token was, if ``Sampling.top_logprobs`` asks for it."""
    stop_string: str | None = None
    """The stop string that ended it, if one did."""
    last_text: bool = False
    """Whether no text follows, although the end is told later: in a delta with no tokens."""


async def generate(
    session: Session,
    prompt: Sequence[int],
    detokenizer: Detokenizer | None,
    *,
    sampling: Sampling,
    max_tokens: int,
    stop: Sequence[str] = (),
    end_tokens: frozenset[int] = frozenset(),
    constraint: Constraint | None = None,
    timing: Timing | None = None,
    speculate: bool = True,
    draft: DraftHolder | None = None,
    pictures: Sequence[SeenPicture] = (),
) -> AsyncGenerator[Delta]:
    """Stream the continuation of ``prompt`` in ``session``, until an end token, a stop string or the limit.

    What the session holds already of ``prompt`` is not computed again; what else it holds is forgotten.

    Args:
        detokenizer: makes the deltas' text; ``None`` for a model that has no tokenizer.
        constraint: the grammar that the answer keeps to; it ends the answer where nothing may follow.
        speculate: guess tokens ahead where that is faster; the tokens are the same either way.
        draft: has the draft model that guesses too; it must fit the session's model.
        pictures: what stands among the prompt's tokens.

    Raises:
        PromptTooLong, UsageError: before anything was sent.
        ShoalError: the session is lost or a step failed.
    """
    if session.ring.numerics.exact and any(seen.placed.loose for seen in pictures):
        raise UsageError(
            "hops run rows of these images as steps tell them, and this session promises the same bits",
            check="open it with Swarm.session(loose=True)",
        )
    if pictures and session.ends.virtual:
        raise UsageError(
            "images stand among a prompt's tokens, and a soft prompt was tuned before tokens alone",
            check="ask without the soft prompt, or without images",
        )
    timing = timing if timing is not None else Timing()
    sampler = Sampler(sampling, constraint)
    text = StopFilter(stop)
    timing.started = trio.current_time()
    timing.reused = session.reusable(prompt, [seen.placed for seen in pictures])
    if timing.reused < len(session.token_ids):
        session.roll_back(timing.reused)
    session.ends.show(pictures)
    with traced_answer(session, len(prompt), timing):
        # Never empty: the last token of a prompt is not reused, as its logits choose the first of the answer.
        advanced = await session.advance(prompt[timing.reused :], sampler, more=max_tokens > 1)
        timing.speculation.off = _why_off(session, speculate)
        text_ids = [*prompt, advanced.token]
        model = None
        if draft is not None and not timing.speculation.off:
            timing.speculation.draft = draft.name
            most, vocab = len(prompt) + max_tokens, session.shape.vocab_size
            model = draft.drafter(sampler, prompt=len(prompt), tokens=most, vocab=vocab)
        speculation = Speculation(
            session, sampler, NgramDrafter(), model, timing.speculation, end_tokens, text_ids
        )
        try:
            for count in range(1, max_tokens + 1):
                token = advanced.token
                timing.note(trio.current_time(), advanced.times)
                ended = token in end_tokens
                shown = text.push("" if ended or detokenizer is None else detokenizer.push(token))
                stopped = text.stopped_by is not None
                finished = ended or stopped or advanced.complete
                if finished or count == max_tokens:
                    # After a stop string nothing is shown, not even what the detokenizer still holds back.
                    shown += text.finish("" if stopped or detokenizer is None else detokenizer.finish())
                    reason = "stop" if finished else "length"
                    yield Delta(shown, (token,), reason, advanced.score, text.stopped_by)
                    return
                yield Delta(shown, (token,), None, advanced.score)
                advanced = await speculation.advance(token, max_tokens - count)
        finally:
            speculation.close()


def _why_off(session: Session, wanted: bool) -> str:
    """Why no tokens are guessed ahead; empty where they may be."""
    if not wanted:
        return "turned off"
    return "" if session.takes_back else "a hop cannot take tokens back"
