"""A machine that is used as a test says, and tells the energy that it takes."""

from __future__ import annotations

from collections.abc import Callable

from shoal.node.owner.machine import Joules, MachineReading


class PretendMachine:
    """A machine of two cores.

    Args:
        clock: seconds; called on any thread.
    """

    CORES = 2

    def __init__(self, clock: Callable[[], float]) -> None:
        self.cpu_by_others = 0.0
        """Share of all cores' time that other programs take."""
        self.cpu_by_node = 0.0
        self.gpu_by_others: float | None = None
        self.on_battery = False
        self.watts: float | None = None
        """What the processors take; ``None``: the machine does not tell."""
        self._clock = clock
        self._at: float | None = None
        self._busy_s = self._own_s = self._joules = 0.0

    def read(self) -> MachineReading:
        """As things have been since the last reading."""
        now = self._clock()
        seconds = 0.0 if self._at is None else now - self._at
        self._at = now
        self._own_s += seconds * self.CORES * self.cpu_by_node
        self._busy_s += seconds * self.CORES * (self.cpu_by_node + self.cpu_by_others)
        self._joules += seconds * (self.watts or 0.0)
        joules = None if self.watts is None else Joules(self._joules, 0.0)
        return MachineReading(
            now, self.CORES, self._busy_s, self._own_s, self.gpu_by_others, self.on_battery, joules
        )
