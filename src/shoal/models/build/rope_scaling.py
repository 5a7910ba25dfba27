"""Rotary frequencies that depend on how long the sequence is, which a KV cache cannot carry over. Pure.

Keys are kept as they were turned when they were computed. Two kinds of scaling turn them in another way in a
longer sequence, and what transformers does with the keys that it has is part of the model's tokens:

============  ================================================  ======================================
kind          frequencies                                       keys computed before
============  ================================================  ======================================
``longrope``  one set up to a limit, another beyond (Ding et    computed again by the families of
              al., "LongRoPE", 2024)                            ``RECOMPUTED``, kept as they are by others
``dynamic``   up to a limit one set, beyond it one for each     kept as they are
              length ("NTK-aware", bloc97, 2023)
============  ================================================  ======================================

What is appended at once is turned by the length after it, however it is cut: so it is in one forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

RECOMPUTED = frozenset({"phi3", "phimoe", "phi4_multimodal"})
"""Model types whose ``generate`` drops its cache where a sequence grows beyond the limit of longrope."""


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How a model's rotary frequencies follow from the length of the sequence; by default not at all."""

    switches: tuple[int, ...] = ()
    """Lengths beyond which another set is taken."""
    stretches: tuple[int, ...] = ()
    """Lengths beyond which every length has a set of its own."""
    recomputed: bool = False
    """Whether keys of another set are computed again, and not kept, when a sequence grows."""

    def __bool__(self) -> bool:
        """Whether the length matters at all."""
        return bool(self.switches or self.stretches)

    def frequencies(self, length: int) -> tuple[int, ...]:
        """What names the frequencies in a sequence of ``length`` tokens: the same for the same ones."""
        return (
            *(int(length > limit) for limit in self.switches),
            *(max(length, limit) for limit in self.stretches),
        )


def rope_scaling(config: object) -> RopeScaling:
    """The scaling that a model's config asks for."""
    c = cast(Any, config)
    switches: set[int] = set()
    stretches: set[int] = set()
    for kind in _kinds(c):
        if kind["rope_type"] == "longrope":
            switches.add(int(kind["original_max_position_embeddings"]))
        elif "dynamic" in kind["rope_type"]:
            stretches.add(int(c.max_position_embeddings))
    return RopeScaling(tuple(sorted(switches)), tuple(sorted(stretches)), c.model_type in RECOMPUTED)


def context_factor(config: object) -> float:
    """How many times the length in its config a model is good for: that of ``dynamic`` is unscaled."""
    kinds = _kinds(config)
    if not kinds or not all("dynamic" in kind["rope_type"] for kind in kinds):
        return 1.0
    return max(1.0, min(float(kind["factor"]) for kind in kinds))


def _kinds(config: object) -> list[dict[str, Any]]:
    """The config's kinds of rotary positions: one, or one for each type of block."""
    parameters = cast("dict[str, Any]", getattr(config, "rope_parameters", None) or {})
    found = [parameters] if "rope_type" in parameters else list(parameters.values())
    return [kind for kind in found if isinstance(kind, dict) and isinstance(kind.get("rope_type"), str)]
