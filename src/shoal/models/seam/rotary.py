"""A model's rotary embedding, and which kind its frequencies are of.

Relied on: it is a module that is given a tensor for its dtype and position ids ``[…, n]``, and gives cosines
and sines ``[…, n, dims]``. It says its ``rope_type``, or one for each type of block. The frequencies of
``longrope`` follow from the largest position that it is given; those of ``dynamic`` also from earlier ones,
until it is given a short sequence.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from shoal.models.seam.contract import expect_members, relied_on

with relied_on("rotary embeddings"):
    from transformers import modeling_rope_utils

    expect_members(modeling_rope_utils, "dynamic_rope_update")


def follows_length(module: nn.Module) -> bool:
    """Whether a module is a rotary embedding whose frequencies depend on the sequence's length."""
    found: Any = getattr(module, "rope_type", None)
    kinds = cast("dict[str, Any]", found).values() if isinstance(found, dict) else (found,)
    return any(isinstance(kind, str) and (kind == "longrope" or "dynamic" in kind) for kind in kinds)
