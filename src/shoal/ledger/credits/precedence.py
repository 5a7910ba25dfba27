"""Who is let in where not all can be: a part of each node is kept for those who give. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from shoal.errors import Busy
from shoal.ledger.credits.credit_book import Standing

KEPT_FREE: Mapping[Standing, float] = {"gives": 0.0, "new": 0.125, "takes": 0.5}
"""The share of a node that must be free for one of this standing to be let in."""
RETRY_S: Mapping[Standing, float] = {"gives": 1.0, "new": 2.0, "takes": 4.0}


def check_precedence(standing: Standing, free: int, total: int) -> None:
    """Refuse who must wait. While nobody else wants the node, everybody may have half of it.

    Args:
        free: of ``total``, places or tokens.

    Raises:
        Busy: says when to come back.
    """
    if free >= total * KEPT_FREE[standing] and free > 0:
        return
    raise Busy(
        "this node is busy, and serves those first who serve others",
        retry_after_s=RETRY_S[standing],
        check="serve some blocks to the swarm, or wait",
        next_command="shoal up",
    )
