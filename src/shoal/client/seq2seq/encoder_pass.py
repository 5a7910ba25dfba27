"""What is remembered of an encoder's session once a decoder goes on with what it gave."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.client.ring.hop import RouteHop
from shoal.client.ring.recovery import RouteChange
from shoal.types import CarrierName


@dataclass(frozen=True, slots=True)
class EncoderPass:
    """The way of a source through an encoder: a part of whatever a decoder makes of it."""

    route: tuple[RouteHop, ...]
    carriers: tuple[CarrierName, ...]
    """How each hop was reached."""
    reroutes: tuple[RouteChange, ...]
    """The losses on the way."""
    times_ms: tuple[tuple[float, float], ...]
    """Milliseconds that each hop computed, and that its work waited there."""
