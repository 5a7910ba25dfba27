"""How an answer is to be protected, where a request's body does not say: by a header or the caller's key."""

from __future__ import annotations

from dataclasses import replace

from starlette.datastructures import Headers
from starlette.requests import Request

from shoal.gateway.access.keys import Caller
from shoal.gateway.errors import BadRequest
from shoal.types import PROTECTION_LEVELS, ProtectionLevel, protection_level

PROTECT = "x-shoal-protect"
"""By which a request says how its answer is protected, whatever its route."""
UNAUDITED: tuple[ProtectionLevel | None, ...] = (None, "fast", "attested")
"""What needs nobody's signature under an answer, nor a second computation."""


def protected(caller: Caller, headers: Headers) -> Caller:
    """The caller with the protection that the request's header asks for.

    Raises:
        BadRequest: there is none by that name.
    """
    level = _asked(headers)
    return caller if level is None else replace(caller, protect=level)


def unaudited_caller(request: Request, wanted: ProtectionLevel | None = None) -> Caller:
    """On whose behalf a request is whose answer nobody signs or computes again, as no text is generated.

    Where a key or the gateway is set to have that, such requests are answered all the same, without it.

    Args:
        wanted: what the body says; it comes before the header.

    Raises:
        BadRequest: the request itself asks for that.
    """
    level = wanted or _asked(request.headers)
    if level not in UNAUDITED:
        raise BadRequest(
            f"what this route answers is not {level}: only generated text is signed and computed again",
            check="ask for attested, where only peers take part that show what they run on, or for fast",
            param="protect" if wanted else PROTECT,
        )
    caller: Caller = request.scope["caller"]
    return caller if level is None else replace(caller, protect=level)


def _asked(headers: Headers) -> ProtectionLevel | None:
    wanted = headers.get(PROTECT)
    level = protection_level(wanted)
    if wanted is not None and level is None:
        raise BadRequest(
            f"the header {PROTECT} is {wanted[:100]!r}",
            check=f"send one of: {', '.join(PROTECTION_LEVELS)}",
            param=PROTECT,
        )
    return level
