"""How much of a node one peer may have, so that there is something for others. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.errors import Busy

KV_SHARE = 0.75
"""Of the KV, what one peer may have with several sessions; with the first it may have all there is."""
RETRY_S = 5.0
"""When to come back for more than one's share."""


def session_share(sessions: int) -> int:
    """How many of a node's sessions one peer may have: a quarter is left for others where there are a few."""
    return sessions if sessions <= 2 else -(-3 * sessions // 4)


def check_share(held: Sequence[int], tokens: int, *, sessions: int, kv_tokens: int) -> None:
    """Refuse one more session of a peer if it would leave too little for others.

    Args:
        held: the tokens of each session that the peer has open, or is opening.
        tokens: of KV, that it asks for.
        sessions: the most that it may have open.
        kv_tokens: of KV, that the node has in all.

    Raises:
        Busy: says when to come back.
    """
    count, taken = len(held), sum(held)
    if count >= sessions:
        open_here = f"{count} sessions of this peer are open, the most that one may have"
        raise Busy(open_here, retry_after_s=RETRY_S)
    if held and taken + tokens > KV_SHARE * kv_tokens:
        raise Busy(
            f"this peer's sessions hold {taken} of {kv_tokens} tokens of KV: {tokens} more are too many",
            check="end a session, or wait",
            retry_after_s=RETRY_S,
        )
