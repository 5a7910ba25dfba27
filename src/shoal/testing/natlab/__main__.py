"""``python -m shoal.testing.natlab 25 cone,sym,cone``: does a swarm between these networks answer?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import trio
import typer

from shoal import process_environ
from shoal.cli import main, options
from shoal.cli.output import emit
from shoal.cli.progress import working
from shoal.errors import UsageError
from shoal.progress import Progress
from shoal.testing.natlab.programs import check_programs
from shoal.testing.natlab.sites import LinkQuality, Site, parse_sites

if TYPE_CHECKING:
    from rich.console import RenderableType

app = typer.Typer(
    name="natlab",
    help="A swarm between networks of this machine's own: behind NATs, far apart, over thin links.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def natlab(
    delay_ms: Annotated[float, typer.Argument(help="From any host to any other, one way.")],
    networks: Annotated[
        str,
        typer.Argument(
            help="Such as cone,sym*2,v6: a node on each host, but the last is the client's. "
            "Kinds: public, v6, static, dual, cone, full, sym, upnp; *2 for two hosts behind one gateway."
        ),
    ],
    public: Annotated[int, typer.Option(help="Public nodes besides, which are in the invite.", min=0)] = 2,
    rate: Annotated[float, typer.Option(help="Megabits a second of each link; 0 is no limit.")] = 0.0,
    loss: Annotated[float, typer.Option(help="Part of packets that each link loses, 0 to 1.")] = 0.0,
    ways: Annotated[
        bool,
        typer.Option("--ways", help="Open a pipe from each host to each other; ask no nodes."),
    ] = False,
    churn: Annotated[
        float,
        typer.Option(metavar="MINUTES", help="Ask so long while nodes, relays, mappings go.", min=0),
    ] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 32,
    seed: Annotated[int, typer.Option(help="The same one loses the same packets.")] = 0,
    model: options.ModelOption = None,
    folder: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Where the nodes' homes and logs are to stay.")
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Make the networks, start nodes in them, ask one question and ping every node. Only root can."""
    link = LinkQuality(delay_ms / 2, rate, loss)
    sites = [Site("public", (f"p{number}",), link) for number in range(1, public + 1)]
    sites += parse_sites(networks, link)
    if sum(len(site.hosts) for site in sites) < 2:
        raise UsageError("a client alone has nobody to ask", check="add a network, or --public 1")
    check_programs()
    with working("natlab") as progress:
        ok, fields, table = _tried(ways, churn, sites, seed, (model, max_tokens, folder), progress)
    emit(fields, as_json, table)
    if not ok:
        raise typer.Exit(1)


def _tried(
    ways: bool,
    minutes: float,
    sites: Sequence[Site],
    seed: int,
    asked: tuple[str | None, int, Path | None],
    progress: Progress,
) -> tuple[bool, dict[str, Any], Callable[[], RenderableType]]:
    """Whether all is as it should be, what ``--json`` prints, and what a person is shown."""
    # Torch and libp2p take seconds to import: what can be said without them has been said.
    if ways:
        from shoal.testing.natlab.ways import measure_ways, ways_table  # noqa: PLC0415

        found = measure_ways(sites, seed, progress)
        return found.complete, found.fields(), partial(ways_table, found)
    from shoal.testing.natlab.trial import TrialOptions, run_trial, trial_table  # noqa: PLC0415

    model, max_tokens, folder = asked
    order, settings = TrialOptions(sites, model, max_tokens, seed, folder), options.settings()
    if minutes:
        from shoal.testing.natlab.churn import churn_table, run_churn  # noqa: PLC0415

        seen = trio.run(partial(run_churn, settings, order, minutes, progress))
        return seen.ok, seen.fields(), partial(churn_table, seen)
    report = trio.run(partial(run_trial, settings, order, progress))
    return report.same, report.fields(), partial(trial_table, report)


if __name__ == "__main__":
    process_environ.share_cores()
    sys.exit(main.run(sys.argv[1:], app, "python -m shoal.testing.natlab"))
