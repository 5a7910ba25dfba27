"""What a canary is modelled on: an answer of this client's, as far as its hops could see it. No I/O.

Nothing of a text is kept but the first two tokens, which tell whether a chat template has written it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from shoal.client.sampling import Sampling
from shoal.client.session import Session
from shoal.errors import ShoalError
from shoal.models.text.codec import TextCodec
from shoal.models.text.prompt import ChatPrompt, encode_prompt
from shoal.trust.answer import KeptAnswer
from shoal.trust.audit import Chance
from shoal.trust.canary import CanaryTexts
from shoal.types import Digest, Format, Numerics, PeerId

RECENT = 64
"""Answers that are remembered."""
HEAD = 2
"""Tokens by which it is told whether a chat template begins a prompt."""
LEAST_TEXT = 4
"""Tokens of a canary's own text: of a prompt that has hardly more than its template."""
ROUNDS = 4
"""How often a text is made longer: what it was drawn of may be fewer tokens once it is one text."""


@dataclass(frozen=True, slots=True)
class SeenAnswer:
    """An answer that was audited, or could have been."""

    digest: Digest
    format: Format
    peers: tuple[PeerId, ...]
    """Who gave it."""
    head: tuple[int, ...]
    """The first tokens of its prompt."""
    prompt: int
    """Tokens."""
    said: int
    room: int
    """Tokens that its hops had reserved."""
    sampling: Sampling
    """Without what belongs to its text: biases, and a seed."""


def seen_answer(session: Session, kept: KeptAnswer, sampling: Sampling | None) -> SeenAnswer | None:
    """What an answer looked like that a session still holds.

    ``None`` where no canary is to be like it: bits are not the same everywhere, it had pictures or an
    encoder, or a hop was paid.
    """
    ends, numerics, said = session.ends, session.ring.numerics, len(kept.token_ids) - kept.prompt_tokens
    odd = bool(ends.given) or bool(ends.pictures.count) or session.encoder is not None
    priced = any(hop.price is not None for hop in session.ring.route)
    if odd or priced or not numerics.exact or said < 1 or not kept.prompt_tokens:
        return None
    plain = replace(sampling or Sampling(), seed=None, logit_bias={}, top_logprobs=None)
    return SeenAnswer(
        digest=session.shape.digest,
        format=Numerics.parse(kept.numerics).format,
        peers=tuple(hop.address.peer for hop in session.ring.route),
        head=tuple(kept.token_ids[:HEAD]),
        prompt=kept.prompt_tokens,
        said=said,
        room=session.ring.rules.tokens,
        sampling=plain,
    )


class RecentAnswers:
    """The last answers of one client."""

    def __init__(self) -> None:
        self._seen = deque[SeenAnswer](maxlen=RECENT)

    def note(self, seen: SeenAnswer) -> None:
        """One more has come to its end."""
        self._seen.append(seen)

    def draw(self, chance: Chance) -> SeenAnswer | None:
        """One of them, all as likely; ``None`` where there is none."""
        return self._seen[int(chance() * len(self._seen))] if self._seen else None


def word_tokens(codec: TextCodec | None, vocab: int) -> list[int]:
    """The tokens that are words, those first that are used most, as their numbers go in most vocabularies.

    Args:
        codec: without one every token is as good as another.
    """
    if codec is None:
        return list(range(vocab))
    pieces = codec.pieces()
    words = (token for token, piece in pieces.items() if piece[1:].isascii() and piece[1:].isalpha())
    return sorted(token for token in words if token < vocab and codec.is_text(token))


def canary_prompt(seen: SeenAnswer, texts: CanaryTexts, codec: TextCodec | None, chance: Chance) -> list[int]:
    """A prompt like that of an answer, as long to within some tokens; empty where none can be made.

    Blocks: not on a loop.

    Raises:
        ShoalError: the tokenizer, or the chat template, fails.
    """
    if codec is None:
        return texts.draw(seen.prompt, chance)
    frame = _chat(codec, "a")
    framed = frame[:HEAD] == list(seen.head)
    tokens = texts.draw(max(LEAST_TEXT, seen.prompt - len(frame) + 1) if framed else seen.prompt, chance)
    prompt = list[int]()
    for _ in range(ROUNDS):
        text = codec.decode(tokens)
        prompt = _chat(codec, text) if framed else encode_prompt(codec, text).token_ids
        if not text or len(prompt) >= seen.prompt:
            break
        tokens += texts.draw(seen.prompt - len(prompt), chance)
    return prompt if framed else prompt[: seen.prompt]


def _chat(codec: TextCodec, text: str) -> list[int]:
    if not codec.has_template:
        return []
    try:
        return encode_prompt(codec, ChatPrompt([{"role": "user", "content": text}])).token_ids
    except ShoalError:
        return []  # of a template that wants something else, no prompt is like it
