"""Answers of a pretended model, as hops sign them in the simulations of audits and of consensus."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from shoal.trust.answer import HopReceipts, KeptAnswer
from shoal.trust.rows import RowLog

HOPS = 3
BLOCKS = 30
WIDTH = 576


def pretended_answer(
    random: Random, peers: Sequence[str], nonce: bytes, tokens: int, sent: RowLog
) -> KeptAnswer:
    """One that nothing is signed of yet.

    Args:
        peers: by hop.
        sent: what the first hop was sent.
    """
    each = BLOCKS // HOPS
    return KeptAnswer(
        model="pretended",
        digest="sha256:" + "0" * 64,
        n_blocks=BLOCKS,
        width=WIDTH,
        numerics="n1/int8/auto/rows",
        codec="bfloat16",
        session=random.randbytes(16),
        nonce=nonce,
        token_ids=tuple(range(tokens)),
        prompt_tokens=1,
        tokens=tokens,
        sent=b"".join(sent.leaf(at) for at in range(tokens)),
        hops=tuple(
            HopReceipts(peer, each * hop, each * (hop + 1), random.randbytes(16), ())
            for hop, peer in enumerate(peers)
        ),
    )
