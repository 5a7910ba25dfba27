"""What a level of protection costs, before anything runs. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoal.executor.pages import PAGE
from shoal.executor.shape import llama_shape
from shoal.trust.audit import MAX_AUDIT_BYTES
from shoal.trust.consensus import REPLICAS
from shoal.trust.proofs.block_proof import ProofSizes
from shoal.trust.proofs.draw import PROVABLE_FORMATS, provable_windows
from shoal.trust.rows import WINDOW, windows
from shoal.types import Format, Kv, ProtectionLevel

RECEIPT_BYTES = 140
"""Of a message, for a hop's receipt of one window."""
EXACT: tuple[Format, ...] = ("int8", "w8a8", "int4", "published")
"""The formats whose bits are the same on every machine, on the C kernels and where no weight is rounded."""


@dataclass(frozen=True, slots=True)
class ProtectionCost:
    """Of one session of a route."""

    level: ProtectionLevel
    budget: float
    """Share of the compute of answers that audits may take."""
    receipt_bytes: float
    """For each token, of all hops together, when the answer is complete."""
    answers_per_audit: float
    """After so many answers of this length one hop is computed again, in the mean; 0: never."""
    shown_bytes: float
    """What the hop before shows for one audit, and an auditor that is a peer is sent, in the mean."""
    why_none: str
    """Why nothing could be audited or compared; empty where it could."""
    replicas: int = 1
    """How many compute each answer."""
    sent_bytes: float = 0.0
    """What the client sends the other replicas for one answer."""
    proof_bytes: float = 0.0
    """What a hop shows to prove a block of one answer, in the mean."""


def protection_cost(
    level: ProtectionLevel,
    format: Format,
    *,
    budget: float,
    hops: int,
    tokens: int,
    row_bytes: float,
    proof_bytes: float = 0.0,
) -> ProtectionCost:
    """What protecting sessions of ``tokens`` tokens over ``hops`` hops costs.

    Args:
        row_bytes: of one token's hidden states, as they travel.
        proof_bytes: of :func:`mean_proof_bytes`; 0 where the model is of another shape.
    """
    if level not in ("audited", "proved", "consensus"):  # at no other one anything is signed or checked
        return ProtectionCost(level, 0.0, 0.0, 0.0, 0.0, "")
    receipts = RECEIPT_BYTES * hops / WINDOW
    if level == "proved":
        why = "" if format in PROVABLE_FORMATS else f"{format} has no sums of integers over whole rows"
        if not why and not proof_bytes:
            why = "the model is not of Llama's shape, so its own modules run it"
        return ProtectionCost(level, 0.0, receipts, 0.0, 0.0, why, proof_bytes=0.0 if why else proof_bytes)
    if format not in EXACT:
        why = f"in {format} bits depend on the machine or on what runs beside; not in int8 and int4"
        return ProtectionCost(level, budget, receipts, 0.0, 0.0, why)
    if level == "consensus":
        sent = (REPLICAS - 1) * tokens * row_bytes
        signed = REPLICAS * receipts
        return ProtectionCost(level, 0.0, signed, 0.0, 0.0, "", replicas=REPLICAS, sent_bytes=sent)
    # A window is drawn evenly, and computed again from the first token on: half of the session in the mean.
    most = max(WINDOW, min(tokens, int(MAX_AUDIT_BYTES / row_bytes)))
    rows = most / 2
    every = rows / (budget * tokens * hops) if budget else 0.0
    return ProtectionCost(level, budget, receipts, every, rows * row_bytes, "")


def mean_proof_bytes(config: Mapping[str, Any], tokens: int, kv: Kv) -> float:
    """What a hop shows to prove a block of a window, in the mean over the windows of a session that may be
    drawn; 0 for a model that is not of Llama's shape.

    Args:
        config: the model's.
        tokens: of the session.
        kv: how its keys and values are kept.
    """
    shape = llama_shape(config)
    if shape is None:
        return 0.0
    window_bytes = shape.kv_page_bytes(kv) * WINDOW // PAGE
    drawn = provable_windows({0: windows(tokens)}, [math.inf], window_bytes)[0]
    past = (drawn - 1) * window_bytes // 2
    return ProofSizes(min(tokens, WINDOW), shape.hidden, shape.products, past).bytes
