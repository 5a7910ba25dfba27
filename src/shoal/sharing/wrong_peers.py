"""Peers that have sent what is not the piece that was asked for. That is no accident: they are left out.

They are kept in a small file beside the models, so that a pull which was killed and goes on, or the next one,
does not begin with them again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from shoal.types import PeerId

FILE = ".wrong-peers.json"
KEPT_S = 7 * 86400.0
LIMIT = 1024
"""Peers; the latest are kept. A new identity costs a liar nothing, so more of them would tell nothing."""


class WrongPeers:
    """Who has sent wrong pieces to this machine in the last week."""

    def __init__(self, models: Path, clock: Callable[[], float] = time.time) -> None:
        """
        Args:
            models: the store's folder.
            clock: seconds since the epoch.
        """
        self._file = models / FILE
        self._clock = clock

    def peers(self) -> frozenset[PeerId]:
        """All of them: other processes of this machine add to them."""
        return frozenset(map(PeerId, self._read()))

    def note(self, peer: PeerId) -> None:
        """Remember that a peer has sent a wrong piece.

        Raises:
            OSError: the file cannot be written.
        """
        found = self._read() | {peer: self._clock()}
        latest = sorted(found.items(), key=lambda entry: entry[1])[-LIMIT:]
        self._file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._file.with_name(f"{FILE}.{os.getpid()}")
        fresh.write_text(json.dumps(dict(latest)), encoding="utf-8")
        fresh.replace(self._file)

    def _read(self) -> dict[str, float]:
        try:
            value = json.loads(self._file.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        entries = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        now = self._clock()
        return {
            peer: since
            for peer, since in entries.items()
            if isinstance(since, int | float) and now - KEPT_S < since <= now
        }
