"""Has a complete answer of the library protected and signed, as was asked for."""

from __future__ import annotations

from shoal.client.answer import Answer
from shoal.client.audits.audits import Audits
from shoal.client.receipts.pull import pull_receipts
from shoal.client.sampling import Sampling
from shoal.client.session import Session
from shoal.types import ProtectionLevel


async def protect_answer(
    audits: Audits,
    answer: Answer,
    session: Session,
    chosen: Sampling,
    level: ProtectionLevel,
    *,
    receipts: bool,
) -> None:
    """Have the hops sign an answer that a session still holds, and audit what is due of it.

    Args:
        receipts: whether they sign it also where the level needs none.

    Raises:
        UsageError: hops sign nothing of such a model.
    """
    prompt, said = session.prompt_of(answer.prompt_token_ids), answer.token_ids
    answer.receipts, answer.protection = await audits.protect(
        session, prompt, said, chosen, level, answer.timing.reused
    )
    if receipts and answer.receipts is None:
        answer.receipts = await pull_receipts(session, prompt, said, chosen)
