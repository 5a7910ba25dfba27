"""Log lines for a person or for a program: bounded, on one line each, and without secrets.

Who logs may name the peer and the session that a line is about: ``log.info("…", extra=about(peer))``.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from shoal.metrics import tracing
from shoal.metrics.trace import short_session

LogFormat = Literal["text", "json"]

LINE_LIMIT = 8 << 10
"""Characters of one line's message or traceback; peers have a say in some of them."""
_SECRETS = re.compile(r"(shoal1-|Bearer\s+|hf_|sk-)[\w.~+/=-]{8,}")
"""Invites, which hold a swarm's secret, and keys, whoever's."""
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_FIELDS = ("peer", "session", "trace")


def about(
    peer: str | None = None, session: bytes | None = None, trace: bytes | None = None
) -> Mapping[str, str]:
    """What a log line is about, for the ``extra`` of a logging call."""
    named = {
        "peer": peer,
        "session": None if session is None else short_session(session),
        "trace": trace.hex() if trace else None,
    }
    return {name: value for name, value in named.items() if value is not None}


def log_to_stderr(level: str, form: LogFormat) -> None:
    """Our own log at ``level``; the libraries' warnings only with ``debug``, for they are not the user's."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(
        handlers=[handler], level=logging.WARNING if level == "debug" else logging.ERROR, force=True
    )
    logging.getLogger("shoal").setLevel(level.upper())


class TextLines(logging.Formatter):
    """``LEVEL logger: message``; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        line = f"{record.levelname} {record.name}: {_clean(_bounded(record.getMessage()))}"
        return f"{line}\n{_bounded(_traceback(record))}" if record.exc_info else line


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and peer, session and traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        said: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _bounded(record.getMessage()),
        }
        if (context := tracing.current()) is not None:
            said["trace"] = context.trace.hex()
        said |= {name: str(record.__dict__[name]) for name in _FIELDS if name in record.__dict__}
        if record.exc_info:
            said["traceback"] = _bounded(_traceback(record))
        # What is no Unicode, such as half a surrogate pair that a peer sent, must not lose the line; and
        # all in ASCII, for some readers of lines end one at U+0085 or U+2028 too.
        readable = {key: value.encode(errors="replace").decode() for key, value in said.items()}
        return json.dumps(readable, separators=(",", ":"))


def _traceback(record: logging.LogRecord) -> str:
    """The end of it, where the error is."""
    return logging.Formatter().formatException(record.exc_info)[-LINE_LIMIT:] if record.exc_info else ""


def _clean(text: str) -> str:
    """One line that cannot drive a terminal, nor be taken for several."""
    return _CONTROLS.sub("�", text)


def _bounded(text: str) -> str:
    cut = text if len(text) <= LINE_LIMIT else text[: LINE_LIMIT - 1] + "…"
    return _SECRETS.sub(r"\1…", cut)
