"""`shoal invite` and `shoal join`: how people come into a private swarm."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from getpass import getpass
from typing import Annotated

import typer

from shoal.cli import options
from shoal.cli.output import emit, say
from shoal.errors import UsageError
from shoal.swarm import membership
from shoal.swarm.invite import MAX_CODE, read_invite, write_invite


def register(app: typer.Typer) -> None:
    app.command()(invite)
    app.command()(join)


def invite(
    swarm: options.SwarmOption = None,
    bootstrap: options.BootstrapOption = None,
    public_address: options.PublicAddressOption = None,
    qr: Annotated[bool, typer.Option("--qr", help="Also draw it as a QR code, on stderr.")] = False,
    as_json: options.JsonOption = False,
) -> None:
    """Print an invite to the swarm. Whoever has it is a member."""
    from shoal.swarm.join import here_only, reachable

    settings = options.settings(swarm=swarm, bootstrap=bootstrap, public_address=public_address)
    kept = reachable(settings, membership.of(settings))
    code = write_invite(kept)
    emit({"swarm": kept.name, "code": code, "bootstrap": kept.bootstrap}, as_json, lambda: code)
    if qr:
        _draw(code)
    if not kept.bootstrap:
        say(
            "note: no node of this swarm runs here, so the code holds no address: "
            "it is enough where multicast finds peers, as on one network"
        )
    elif here_only(kept):
        say("note: the nodes listen on this machine's own interface only: no other machine can join")
    say("give it only to people you want in the swarm; they type `shoal join` and then the code")


def join(
    code: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CODE]",
            help="The invite. Without it you are asked, so that it is not kept in the shell's history "
            "nor seen in the list of processes; - reads it from stdin.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Local name for the swarm.", show_default=False)] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Join a swarm with an invite. Any member prints one with `shoal invite`."""
    settings = options.settings()
    invited = read_invite(_given(code))
    kept = membership.save(settings.paths.swarms, replace(invited, name=name or invited.name))
    which = "" if kept.name == settings.swarm else f" --swarm {kept.name}"
    emit(
        {"swarm": kept.name, "bootstrap": kept.bootstrap, "next_command": f"shoal status{which}"},
        as_json,
        lambda: f"joined {kept.name}",
    )
    if not as_json:
        say(f"next: shoal status{which}, or shoal up{which} to serve a part of a model")


def _given(code: list[str] | None) -> str:
    """The code that was typed, wherever that was.

    Raises:
        UsageError: there is none, and nobody at a terminal who could be asked.
    """
    if code is None or code == ["-"]:
        text = ""
        with suppress(EOFError):
            asks = code is None and sys.stdin.isatty()
            text = getpass("invite code (not shown): ") if asks else sys.stdin.read(2 * MAX_CODE)
        if not text.strip():
            raise UsageError(
                "no invite code was given",
                check="type `shoal join` at a terminal and give the code when asked, or write it to stdin",
                next_command="shoal join",
            )
        return text
    return "".join(code)  # a terminal may have broken it into words, and a shell passes each as an argument


def _draw(code: str) -> None:
    """The code as a QR code. Capitals fit its compact alphabet, and join reads them as well."""
    import segno

    segno.make_qr(code.upper(), error="l").terminal(out=sys.stderr, compact=True)
