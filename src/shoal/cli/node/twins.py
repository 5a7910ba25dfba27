"""Two nodes with one identity: others reach now the one, now the other, and sessions on both break."""

from __future__ import annotations

from pathlib import Path

import trio

from shoal.cli.output import say
from shoal.swarm.local_nodes import RunningNode, running_nodes

LOOK_EVERY_S = 5.0


async def warn_of_twins(folder: Path, node: RunningNode) -> None:
    """Say so whenever another process of this machine serves as the same peer, until cancelled.

    Each of the two looks, so it is said at both: whichever began first.

    Args:
        folder: ``Paths.nodes``.
    """
    told: set[int] = set()
    while True:
        for other in running_nodes(folder):
            same = (other.peer, other.swarm) == (node.peer, node.swarm)
            if same and other.pid not in told | {node.pid}:
                told.add(other.pid)
                say(
                    f"warning: process {other.pid} serves with the same identity, {node.peer}: peers reach "
                    "now the one, now the other, and sessions on both break. End one of them, or give it a "
                    "home and so an identity of its own: SHOAL_HOME=FOLDER shoal serve MODEL"
                )
        await trio.sleep(LOOK_EVERY_S)
