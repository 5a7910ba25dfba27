"""What is asked of a plan: a model by its config, held in some format, for so many sessions."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.config import Settings
from shoal.errors import PromptTooLong
from shoal.executor.kernels.built import kernels_built
from shoal.executor.load import holds_published
from shoal.models.checkpoint.sizes import weight_bytes
from shoal.models.store.config_only import glance
from shoal.models.store.store import ModelStore
from shoal.planning.costs import model_cost
from shoal.planning.pipeline import Workload
from shoal.planning.protection import mean_proof_bytes
from shoal.planning.roofline import SpanCost
from shoal.routing.formats import choose_format
from shoal.types import Format, PrivateEnds
from shoal.wire.payload import encoded_bytes

CONTEXT = 2048
"""Tokens of a session where nobody says how many; fewer where the model ends before."""


@dataclass(frozen=True, slots=True)
class PlanInput:
    """The question: a model, held in some format, for so many sessions."""

    name: str
    format: Format
    cost: SpanCost
    """Of the blocks that are placed, and of what the client runs beside them."""
    load: Workload
    own: PrivateEnds
    proof_bytes: float
    """What a hop shows to prove a block; 0 where it cannot."""


def plan_input(settings: Settings, model: str, sessions: int, context: int | None) -> PlanInput:
    """Read the model's config, and find out what its blocks cost.

    Args:
        settings: the format, the KV and the blocks that the client keeps.
        context: tokens of each session; ``None``: :data:`CONTEXT`, or as many as the model was made for.

    Raises:
        UnknownModel: there is none of that name.
        UnsupportedModel: it cannot be served in spans.
        PromptTooLong: it was made for shorter sessions.
    """
    seen = glance(ModelStore(settings.paths.models), model)
    if context is not None and context > seen.context:
        raise PromptTooLong(
            f"{seen.name} was made for sessions of {seen.context} tokens, not {context}",
            check="lower --context",
        )
    published = seen.model is not None and holds_published(seen.model)
    stored = seen.stored if seen.model is None else seen.model.dtype
    format = choose_format(settings.format, stored, kernels=kernels_built(), published=published).format
    held = 0.0 if seen.model is None else weight_bytes(seen.model, format)
    cost = model_cost(seen.config, format, settings.kv, held).keep(settings.own_blocks)
    codec = settings.wire if settings.wire != "auto" else ("float32" if format == "fp32" else "bfloat16")
    row = encoded_bytes(1, cost.hidden_size, codec)
    load = Workload(sessions, context or min(CONTEXT, seen.context), row)
    proof = mean_proof_bytes(seen.config.to_dict(), load.context, settings.kv)
    return PlanInput(seen.name, format, cost, load, settings.own_blocks, proof)
