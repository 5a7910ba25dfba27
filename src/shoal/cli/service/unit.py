"""The text of the systemd unit. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

NAME = "shoal.service"
MARK = "# Written by `shoal service install`, which replaces it."

_UNIT = """\
{mark}
[Unit]
Description=Shoal, a node of a swarm

[Service]
Type=exec
ExecStart={command}
{environment}\
Restart=on-failure
RestartSec=10
# 2 and 5: a setting or an invite is wrong, and would be so again.
RestartPreventExitStatus=2 5
# Open sessions end first; then what is left of the node's processes.
TimeoutStopSec=90
KillMode=mixed
NoNewPrivileges=yes

[Install]
WantedBy=default.target
"""


def text(command: Sequence[str], home: Path | None) -> str:
    """The unit that runs ``command``.

    Args:
        home: ``SHOAL_HOME`` of the service, if it is to have one.
    """
    environment = f"Environment={quoted(f'SHOAL_HOME={home}')}\n" if home else ""
    # In a command, systemd would also take a dollar for a variable.
    words = " ".join(quoted(word).replace("$", "$$") for word in command)
    return _UNIT.format(mark=MARK, command=words, environment=environment)


def quoted(word: str) -> str:
    """One word as systemd reads it back: in quotes, with its specifiers escaped (systemd.syntax(7))."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("\n", "\\n")
    return f'"{escaped}"'
