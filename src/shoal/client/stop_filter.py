"""Stop strings in streamed text: what may be shown, and what is held back until more has come."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Passes text on until a stop string occurs; holds back what may be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(s for s in stop if s)
        self._held = ""
        self.stopped_by: str | None = None
        """The stop string that occurred, and ended the output."""

    def push(self, text: str) -> str:
        """What may be shown now. Nothing follows a stop string, nor is the string itself shown."""
        if self.stopped_by is not None:
            return ""
        self._held += text
        found = [(place + len(s), place, s) for s in self._stop if (place := self._held.find(s)) >= 0]
        if found:
            _, place, self.stopped_by = min(found)  # the one that was complete first
            shown, self._held = self._held[:place], ""
            return shown
        keep = max((_overlap(self._held, s) for s in self._stop), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self, text: str) -> str:
        """The rest, at the end of the output."""
        shown = self.push(text) + self._held
        self._held = ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` begin ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
