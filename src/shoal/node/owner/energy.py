"""How much energy a token takes at a node. Pure: made from two readings of its machine.

Of what the processors took, a node's part is its share of the time: the share of it in which forwards ran, by
its share of the CPU time of all programs. Of a GPU's energy it is the first of the two. So what a machine
takes while it waits is no token's.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal.node.owner.machine import MachineReading

KEEP = 0.9
"""Of earlier looks, at each: some ten of them later a change shows."""


@dataclass(slots=True)
class EnergyMeter:
    """What tokens have taken at one node, the last of them counting most."""

    joules: float = 0.0
    """That the node has taken in all."""
    _recent_joules: float = 0.0
    _recent_tokens: float = 0.0

    @property
    def token_joules(self) -> float:
        """Of one token through the node's span; 0 while that is not known."""
        return self._recent_joules / self._recent_tokens if self._recent_tokens else 0.0

    def note(self, before: MachineReading, after: MachineReading, forward_s: float, tokens: int) -> None:
        """Count what a node took between two readings.

        Args:
            forward_s: seconds of forwards between them.
            tokens: that these added to caches.
        """
        took = _node_joules(before, after, forward_s)
        if took is None:
            return
        self.joules += took
        if tokens:
            self._recent_joules = KEEP * self._recent_joules + took
            self._recent_tokens = KEEP * self._recent_tokens + tokens


def _node_joules(before: MachineReading, after: MachineReading, forward_s: float) -> float | None:
    seconds = after.at - before.at
    if seconds <= 0 or before.joules is None or after.joules is None:
        return None
    busy_s, own_s = after.busy_s - before.busy_s, after.own_s - before.own_s
    own = min(1.0, max(0.0, own_s) / busy_s) if busy_s > 0 else 0.0
    cpu, gpu = after.joules.cpu - before.joules.cpu, after.joules.gpu - before.joules.gpu
    return min(1.0, forward_s / seconds) * (cpu * own + gpu)
