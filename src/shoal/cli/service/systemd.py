"""The systemd of this user, by its own `systemctl`."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from shoal.cli.service.unit import MARK, NAME
from shoal.errors import DeadlineExceeded, ShoalError, UsageError

WITHIN_S = 120.0
"""Seconds that systemd may take: a node that ends lets its sessions end first."""
SHOWN = {"UnitFileState": "enabled", "ActiveState": "active", "SubState": "state", "MainPID": "pid"}


@dataclass(frozen=True, slots=True)
class Systemd:
    """Where the unit lies, and the program that knows it."""

    program: str
    path: Path

    @classmethod
    def here(cls) -> Systemd:
        """The user's systemd.

        Raises:
            ShoalError: this machine has none, or none for this user.
        """
        program = shutil.which("systemctl")
        if program is None:
            raise ShoalError(
                "this machine has no systemd, so no service can be installed",
                check="start `shoal up` with whatever starts services on this machine",
                next_command="shoal up",
            )
        systemd = cls(program, Path(platformdirs.user_config_dir(), "systemd", "user", NAME))
        asked = systemd.ask("show", "--property=Version")
        if asked.returncode:
            raise ShoalError(
                f"systemd has no manager for this user: {_said(asked)}",
                check="log in as this user directly, not with su or sudo; containers have no user manager",
                next_command="shoal up",
            )
        return systemd

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ``systemctl --user``, whatever comes of it.

        Raises:
            DeadlineExceeded: it does not end.
        """
        command = [self.program, "--user", "--no-pager", *words]
        try:
            return subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=WITHIN_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise DeadlineExceeded(f"{' '.join(command)} took over {WITHIN_S:.0f} s") from error

    def order(self, *words: str) -> None:
        """Run ``systemctl --user``.

        Raises:
            ShoalError: it failed.
        """
        done = self.ask(*words)
        if done.returncode:
            raise ShoalError(
                f"systemctl --user {' '.join(words)} failed: {_said(done)}",
                next_command=f"journalctl --user -u {NAME}",
            )

    def install(self, text: str) -> list[str]:
        """Write the unit, and start it now and at every login; returns what was done.

        Raises:
            UsageError: a unit of this name is there that we have not written.
            ShoalError: systemd does not take it.
        """
        if self.path.exists() and MARK not in self.path.read_text("utf-8", errors="replace"):
            raise UsageError(
                f"{self.path} already exists and was not written by shoal",
                check="move it away if you do not need it",
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(text, "utf-8")
        self.order("daemon-reload")
        self.order("enable", NAME)
        self.order("restart", NAME)  # also when an older one runs
        return [f"wrote {self.path}", f"enabled {NAME}", f"started {NAME}"]

    def status(self) -> dict[str, Any]:
        """Whether it is there, and what systemd says of it."""
        fields: dict[str, Any] = {"unit": str(self.path), "installed": self.path.exists()}
        shown = self.ask("show", NAME, f"--property={','.join(SHOWN)}").stdout
        said = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
        return fields | {ours: said.get(theirs, "") for theirs, ours in SHOWN.items()}

    def uninstall(self) -> list[str]:
        """Stop it and remove the unit; returns what was done. Raises as :meth:`install`."""
        if not self.path.exists():
            return ["no service is installed"]
        if MARK not in self.path.read_text("utf-8", errors="replace"):
            raise UsageError(
                f"{self.path} was not written by shoal", check="disable it with systemctl --user disable"
            )
        self.order("disable", "--now", NAME)
        self.path.unlink()
        self.order("daemon-reload")
        return [f"stopped and disabled {NAME}", f"removed {self.path}"]


def _said(done: subprocess.CompletedProcess[str]) -> str:
    text = (done.stderr or done.stdout).strip()
    return text.splitlines()[-1] if text else f"exit code {done.returncode}"
