"""The turns in the life of a process that serves: a line for each, for a program or for a reader."""

from __future__ import annotations

import sys
from typing import Any

from shoal.cli.output import say, to_json


def tell(event: str, as_json: bool, **fields: Any) -> None:
    """One turn: a JSON line on stdout, or a line for a reader on stderr."""
    if as_json:
        sys.stdout.write(to_json({"event": event, **fields}) + "\n")
        sys.stdout.flush()
        return
    say(SENTENCES[event].format(**fields))


SENTENCES = {
    "listening": "listening as {peer}",
    "fetched": "fetched {bytes:,} bytes of weights from peers, {bytes_s:,} a second",
    "sharing": "sharing {model} ({digest}); {ended_by} ends it",
    "serving": "serving blocks {start}:{end} of {model} in {format}; {ended_by} ends it",
    "moved": "now serving blocks {start}:{end}: {why}",
    "yielding": "{what}",
    "gateway": "web page and API: {url}",
    "leaving": "leaving once {sessions} open sessions have ended; {ended_by} again ends at once",
    "ended": "ended",
}
