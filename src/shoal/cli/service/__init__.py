"""`shoal service`: a node that starts with the machine's user and comes back after a crash."""

from __future__ import annotations

import sys

import typer

from shoal.cli import options
from shoal.cli.output import emit, say
from shoal.cli.service import unit


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Run `shoal up` as a systemd user service.", no_args_is_help=True)
    for command in (install, status, uninstall):
        group.command()(command)
    app.add_typer(group, name="service")


def install(as_json: options.JsonOption = False) -> None:
    """Start `shoal up` now and at every login. Its options come from config.toml."""
    from shoal.cli.service.systemd import Systemd

    settings = options.settings()
    systemd = Systemd.here()
    command = [sys.executable, "-m", "shoal.cli", "up"]
    did = systemd.install(unit.text(command, settings.paths.home))
    emit({"unit": systemd.path, "did": did}, as_json, lambda: "\n".join(did))
    if not as_json:
        say(f"its options: {settings.paths.config_file}; its log: journalctl --user -u {unit.NAME}")
        say("it stops when you log out; to keep it running: loginctl enable-linger")


def status(as_json: options.JsonOption = False) -> None:
    """Show whether the service is installed, enabled and running."""
    from shoal.cli.service.systemd import Systemd

    fields = Systemd.here().status()
    emit(fields, as_json, lambda: "\n".join(f"{name}: {value}" for name, value in fields.items()))


def uninstall(as_json: options.JsonOption = False) -> None:
    """Stop the service and remove it. The node's identity, models and swarms stay."""
    from shoal.cli.service.systemd import Systemd

    systemd = Systemd.here()
    did = systemd.uninstall()
    emit({"unit": systemd.path, "did": did}, as_json, lambda: "\n".join(did))
