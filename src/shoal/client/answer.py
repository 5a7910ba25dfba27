"""An answer as it is streamed, and what is known of it afterwards."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.client.audits.protection import FAST, Protection
from shoal.client.ends import OwnSpan, SessionEnds
from shoal.client.generate import Delta, FinishReason
from shoal.client.receipts.pull import AnswerReceipts
from shoal.client.ring.recovery import RouteChange
from shoal.client.seq2seq.encoder_pass import EncoderPass
from shoal.client.seq2seq.sides import all_hops
from shoal.client.session import Session
from shoal.client.timing import Timing
from shoal.types import CarrierName, PeerId, Span

Messages = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class RouteStage:
    """One hop of the route that an answer took."""

    peer: PeerId
    span: Span
    carrier: CarrierName
    attested: str = ""
    """What it has shown to run on, in few words; empty where only what it computes was wanted."""


class Answer:
    """Iterate over it for the deltas; its fields fill as they come. It can be iterated once."""

    def __init__(self, prompt: str, stream: Callable[[Answer], AsyncGenerator[Delta]]) -> None:
        self.prompt = prompt
        """The text that was given to the model, after the chat template if one was used."""
        self.prompt_token_ids: Sequence[int] = ()
        self.token_ids: list[int] = []
        """What was generated, the end token included."""
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self.route: tuple[RouteStage, ...] = ()
        """The hops that answer now; another route after a re-route. Those of an encoder come first."""
        self.reroutes: tuple[RouteChange, ...] = ()
        """The losses that the answer has survived."""
        self.timing = Timing()
        self.ends: SessionEnds | None = None
        """What this machine computes of it, once it has begun."""
        self.encoder: EncoderPass | None = None
        """How the prompt came through an encoder, of models that have one before a decoder."""
        self.tower_bytes = 0
        """Bytes of what looked at its images on this machine, if it shows any."""
        self.receipts: AnswerReceipts | None = None
        """What the hops have signed of it, where that was asked for and the answer is complete."""
        self.protection: Protection = FAST
        """What came of its protection, once it is complete."""
        self._stream = stream(self)

    async def __aiter__(self) -> AsyncIterator[Delta]:
        try:
            async for delta in self._stream:
                self.text += delta.text
                self.token_ids += delta.token_ids
                self.finish_reason = delta.finish_reason
                yield delta
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Stop, and free the session on every hop. Closing twice is no error."""
        await self._stream.aclose()

    @property
    def own(self) -> tuple[OwnSpan, ...]:
        """The blocks that run on this machine, with what they cost here."""
        return self.ends.own if self.ends else ()

    def follow(self, session: Session) -> None:
        """Note which way the session goes now, and what it has survived."""
        self.ends, self.encoder = session.ends, session.encoder
        self.reroutes, self.route = tuple(session.reroutes), route_stages(session)

    def hop_ms(self) -> list[tuple[float, float]]:
        """Per hop of the route: median milliseconds a decode step spent computing and waiting there, and for
        an encoder's hop those of the prompt."""
        found = list(self.encoder.times_ms) if self.encoder else []
        for hop in range(len(self.route) - len(found)):
            times = self.timing.hops.get(hop, [])
            found.append(
                (_median([t.compute_us for t in times]) / 1e3, _median([t.waiting_us for t in times]) / 1e3)
            )
        return found


def route_stages(session: Session) -> tuple[RouteStage, ...]:
    """The route that a session takes now, after that through an encoder, if there is one."""
    return tuple(
        RouteStage(hop.address.peer, hop.span, carrier, hop.attested) for hop, carrier in all_hops(session)
    )


def _median(values: list[int]) -> float:
    return float(sorted(values)[len(values) // 2]) if values else 0.0
