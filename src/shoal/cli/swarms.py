"""`shoal invite` and `shoal join`: how people come into a private swarm."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Annotated

import typer

from shoal.cli import options
from shoal.cli.output import emit, say
from shoal.swarm import membership


def register(app: typer.Typer) -> None:
    app.command()(invite)
    app.command()(join)


def invite(
    swarm: options.Swarm = None,
    bootstrap: options.Bootstrap = None,
    qr: Annotated[bool, typer.Option("--qr", help="Also draw it as a QR code, on stderr.")] = False,
    as_json: options.Json = False,
) -> None:
    """Print an invite to the swarm. Whoever has it is a member."""
    from shoal.swarm.join import here_only, reachable

    settings = options.settings(swarm=swarm, bootstrap=bootstrap)
    kept = reachable(settings, membership.of(settings))
    code = membership.to_code(kept)
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
    say("give it only to people you want in the swarm; they type: shoal join CODE")


def join(
    code: Annotated[list[str], typer.Argument(metavar="CODE", help="The invite; - reads it from stdin.")],
    name: Annotated[str | None, typer.Option(help="Local name for the swarm.", show_default=False)] = None,
    as_json: options.Json = False,
) -> None:
    """Join a swarm with an invite. Any member prints one with `shoal invite`."""
    settings = options.settings()
    # A terminal may have broken the code into words, and a shell passes each as an argument.
    text = sys.stdin.read(2 * membership.MAX_CODE) if code == ["-"] else "".join(code)
    invited = membership.from_code(text)
    kept = membership.save(settings.paths.swarms, replace(invited, name=name or invited.name))
    which = "" if kept.name == settings.swarm else f" --swarm {kept.name}"
    emit(
        {"swarm": kept.name, "bootstrap": kept.bootstrap, "next_command": f"shoal status{which}"},
        as_json,
        lambda: f"joined {kept.name}",
    )
    if not as_json:
        say(f"next: shoal status{which}, or shoal up{which} to serve a part of a model")


def _draw(code: str) -> None:
    """The code as a QR code. Capitals fit its compact alphabet, and join reads them as well."""
    import segno

    segno.make_qr(code.upper(), error="l").terminal(out=sys.stderr, compact=True)
