"""What was typed before, in a file that stays small. prompt_toolkit brings it back by the arrow keys."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.history import History

MAX_ENTRIES = 1000
MAX_LENGTH = 16 << 10
"""Characters; a longer entry was pasted, and is not kept."""


class KeptHistory(History):
    """One JSON string a line, the newest last; mode 0600, for it is the user's own.

    It is cut to its newest entries when a conversation begins, so that two at once do no harm to each other.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._kept = _read(path)
        if len(self._kept) > MAX_ENTRIES:
            self._kept = self._kept[-MAX_ENTRIES:]
            fresh = path.with_name(f"{path.name}.{os.getpid()}")
            _append(fresh, self._kept)
            fresh.replace(path)

    def load_history_strings(self) -> Iterable[str]:
        """The entries, the newest first."""
        return reversed(self._kept)

    def store_string(self, string: str) -> None:
        """Keep one more."""
        if len(string) <= MAX_LENGTH:
            _append(self._path, [string])


def _read(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return []
    found: list[str] = []
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # half a line, from a machine that went down while it wrote
        if isinstance(entry, str):
            found.append(entry)
    return found


def _append(path: Path, entries: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)
