"""`shoal route`: which way a session would take now, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import options
from shoal.cli.enter import looking
from shoal.cli.output import emit, printable
from shoal.cli.progress import working
from shoal.config import Settings
from shoal.errors import NoCoverage
from shoal.models.store.catalogue import full_name
from shoal.option_values import price_of, show_coins
from shoal.routing.formats import ranked_numerics
from shoal.routing.prices import Candidate, within_price
from shoal.routing.route import routed_span
from shoal.swarm.announcement import numerics_of
from shoal.swarm.names import name_of
from shoal.types import PeerId, Span, Way, gaps

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from shoal.cli.enter import Onlooker
    from shoal.cli.status.overview import PeerReach
    from shoal.routing.explain import Choice
    from shoal.swarm.announcement import Announcement, Served

TOKENS = 1024
BAR = 24
"""Characters of the longest bar."""


def register(app: typer.Typer) -> None:
    app.command()(route)


def route(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model that the swarm serves.")],
    why: Annotated[
        bool, typer.Option("--why", help="Show the cost of each hop and the best alternatives.")
    ] = False,
    tokens: Annotated[int, typer.Option(help="Session length in tokens: prompt and answer.", min=1)] = TOKENS,
    only: options.OnlyOption = None,
    objective: options.ObjectiveOption = None,
    max_price: options.MaxPriceOption = None,
    private_ends: options.PrivateEndsOption = None,
    attested_only: options.AttestedOnlyOption = None,
    measurements: options.MeasurementsOption = None,
    swarm: options.SwarmOption = None,
    public: options.PublicOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Show the route that a session would take now. Measures latency to each peer first."""
    settings = options.settings(
        swarm=swarm,
        public=public,
        only=only,
        objective=objective,
        max_price=max_price,
        private_ends=private_ends,
        attested_only=attested_only,
        measurements=measurements,
    )
    model = full_name(model)

    async def go(opened: Onlooker) -> tuple[Choice, Mapping[PeerId, PeerReach]]:
        with working("measuring latency to each peer"):
            return await _explained(opened, model, tokens)

    found, reached = looking(settings, go, model=model)
    ways: dict[PeerId, Way] = {peer: one.way for peer, one in reached.items()}
    emit(
        fields_of(model, found, ways), as_json, lambda: choice_view(found, ways) if why else line(found, ways)
    )


async def _explained(swarm: Onlooker, model: str, tokens: int) -> tuple[Choice, Mapping[PeerId, PeerReach]]:
    from shoal.cli.status.observe import hear, reach_all
    from shoal.routing.explain import explain_route
    from shoal.swarm.announcement import candidate

    await hear(swarm)
    reached = await reach_all(swarm, swarm.announcements())
    in_reach = [a for a in swarm.announcements() if _in_reach(reached.get(PeerId(a.peer)))]
    if any(a.served and a.served.model == model for a in swarm.announcements() if a not in in_reach):
        _check_reach(in_reach, model)
    if swarm.settings.attested:
        in_reach = await _attested(swarm, in_reach, model)
    serving = covering(in_reach, model, swarm.settings)
    rtts = {peer: one.rtt_s for peer, one in reached.items()}
    n_blocks = serving[0][1].n_blocks
    offers = [candidate(PeerId(a.peer), served, rtts.get(PeerId(a.peer))) for a, served in serving]
    choice = explain_route(
        _affordable(offers, price_of(swarm.settings.max_price), model),
        n_blocks,
        tokens,
        span=routed_span(swarm.settings.own_blocks, n_blocks),
        objective=swarm.settings.objective,
        pinned={PeerId(peer) for peer in swarm.settings.pin},
    )
    return choice, reached


def _affordable(offers: list[Candidate], most: int, model: str) -> list[Candidate]:
    """Those that ask no more than may be paid. Raises NoCoverage: all ask more."""
    found = within_price(offers, most)
    if offers and not found:
        least = show_coins(min(offer.price for offer in offers))
        raise NoCoverage(
            f"whoever serves {model} asks {least} or more for a million tokens of a block: more than "
            f"the {show_coins(most) if most else 'nothing'} that may be paid",
            check="let more be paid",
            next_command=f"shoal route {model} --max-price {least}",
        )
    return found


async def _attested(swarm: Onlooker, in_reach: list[Announcement], model: str) -> list[Announcement]:
    """Those that have shown a machine that is on the list.

    Raises:
        NoCoverage: nobody who serves the model has.
    """
    from shoal.cli.status.machines import ask_machines

    machines = await ask_machines(swarm, in_reach)
    on_list = {peer for peer, machine in machines.items() if machine.on_list}
    found = [a for a in in_reach if a.peer in on_list]
    if not any(a.served and a.served.model == model for a in found):
        raise NoCoverage(
            f"nobody who serves {model} shows a machine that is on the list of measurements",
            check="see what each peer shows",
            next_command="shoal peers --attested",
        )
    return found


def _check_reach(in_reach: list[Announcement], model: str) -> None:
    """Raises NoCoverage: of a model that is served, nobody who serves it can be reached from here."""
    if not any(a.served and a.served.model == model for a in in_reach):
        raise NoCoverage(
            f"nobody who serves {model} can be reached from here",
            check="see which way leads to whom with shoal peers, and what kind of router is between",
            next_command="shoal doctor",
        )


def _in_reach(found: PeerReach | None) -> bool:
    """Whether a route may use a peer: one that was not tried counts as one that answers."""
    return found is None or found.way != "none"


def covering(alive: list[Announcement], model: str, settings: Settings) -> list[tuple[Announcement, Served]]:
    """Who serves the model by one numerics: of the format asked for or, where more cover it, of most peers.

    Raises:
        NoCoverage: nobody serves it.
    """
    found = [(a, a.served) for a in alive if a.served and a.served.model == model]
    found = [(a, served) for a, served in found if not settings.only or a.peer in settings.only]
    wanted = settings.asked_format
    routed = routed_span(settings.own_blocks, found[0][1].n_blocks) if found else Span(0, 1)
    offers = [(numerics_of(one), one.span) for _, one in found]
    ways = ranked_numerics([(n, span, False) for n, span in offers if n is not None], routed, wanted)
    # Two versions of a model never mix: of those that there are, the one that more peers serve.
    counts = Counter(served.digest for _, served in found)
    groups = [
        [(a, s) for a, s in found if s.digest == digest and numerics.admits(numerics_of(s))]
        for digest, _ in counts.most_common()
        for numerics in ways
    ]
    groups = [group for group in groups if group]
    for group in groups:
        routed = routed_span(settings.own_blocks, group[0][1].n_blocks)
        if not gaps((served.span for _, served in group), routed.end, routed.start):
            return group
    if not groups:
        raise NoCoverage(
            f"nobody{' of those in only' if settings.only else ''} serves {model}"
            + (f" in {wanted}" if wanted else ""),
            check="give the model's name as shoal status shows it",
            next_command=f"shoal serve {model}",
        )
    return groups[0]


def fields_of(model: str, choice: Choice, ways: Mapping[PeerId, Way]) -> dict[str, Any]:
    """The answer as ``--json`` shows it; times of one decode step in milliseconds."""
    return {
        "model": model,
        "objective": choice.objective,
        "step_ms": _ms(choice.seconds),
        "price_wei": str(choice.price),
        "stages": [
            {
                "peer": stage.peer,
                "span": str(stage.span),
                "way": ways.get(stage.peer, ""),
                "way_ms": _ms(stage.way_s),
                "waiting_ms": _ms(stage.waiting_s),
                "computing_ms": _ms(stage.computing_s),
                "measured": stage.measured,
                "sessions": stage.sessions,
                "tokens_free": stage.tokens_free,
                "price_wei": str(stage.price),
            }
            for stage in choice.stages
        ],
        "back_ms": _ms(choice.back_s),
        "own": list(map(str, choice.own)),
        "without": [
            {
                "peer": other.without,
                "step_ms": _ms(other.seconds) if other.stages else None,
                "stages": [{"peer": peer, "span": str(span)} for peer, span in other.stages],
                "why_none": other.why_none,
            }
            for other in choice.alternatives
        ],
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def line(choice: Choice, ways: Mapping[PeerId, Way]) -> str:
    """The route alone, one hop after another, each with the way that leads to it from here."""
    hops = [
        (stage.span, _hop(stage.peer, stage.span) + (f" ({ways[stage.peer]})" if stage.peer in ways else ""))
        for stage in choice.stages
    ]
    hops += [(span, f"here {span}") for span in choice.own]
    paid = f"; {show_coins(choice.price)} for a million tokens" if choice.price else ""
    return " → ".join(hop for _, hop in sorted(hops)) + paid


def choice_view(choice: Choice, ways: Mapping[PeerId, Way]) -> Group:
    """What each hop costs, then what there would be without each."""
    from rich.console import Group
    from rich.text import Text

    hops = len(choice.stages)
    head = (
        f"best for {choice.objective}: {hops} {'hop' if hops == 1 else 'hops'}, "
        f"a token in {1000 * choice.seconds:.1f} ms, {1 / choice.seconds:.1f} tok/s for one session"
    )
    if choice.price:
        head += f", {show_coins(choice.price)} for a million tokens"
    own = (
        [Text(f"beside it blocks {' and '.join(map(str, choice.own))}, which run here")] if choice.own else []
    )
    return Group(Text(head, style="bold"), *own, Text(""), _stages(choice, ways), Text(""), _without(choice))


def _stages(choice: Choice, ways: Mapping[PeerId, Way]) -> Table:
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=None, pad_edge=False)
    for heading in ("hop", "blocks", "over"):
        rows.add_column(heading)
    for heading in ("way", "waiting", "computing", "sessions", "free tokens", "price"):
        rows.add_column(heading, justify="right")
    rows.add_column("share of the step")
    for stage in choice.stages:
        guessed = "" if stage.measured else "~"
        rows.add_row(
            Text(_name(stage.peer)),
            str(stage.span),
            ways.get(stage.peer, "-"),
            f"{1000 * stage.way_s:.2f} ms",
            f"{1000 * stage.waiting_s:.2f} ms",
            f"{guessed}{1000 * stage.computing_s:.2f} ms",
            str(stage.sessions),
            f"{stage.tokens_free:,}",
            show_coins(stage.price) if stage.price else "-",
            _bar(stage.seconds / choice.seconds),
        )
    back = f"{1000 * choice.back_s:.2f} ms"
    rows.add_row("back", "", "", back, "", "", "", "", "", _bar(choice.back_s / choice.seconds))
    return rows


def _bar(share: float) -> str:
    return "━" * round(BAR * share) + f" {share:.0%}"


def _without(choice: Choice) -> Table:
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=None, pad_edge=False)
    rows.add_column("without")
    rows.add_column("a token in", justify="right")
    rows.add_column("dearer by", justify="right")
    rows.add_column("route", overflow="fold")
    for other in choice.alternatives:
        name = Text(_name(other.without))
        if not other.stages:
            rows.add_row(name, "-", "-", Text(printable(other.why_none)))
            continue
        ways = " → ".join(_hop(peer, span) for peer, span in other.stages)
        more = other.seconds - choice.seconds
        rows.add_row(name, f"{1000 * other.seconds:.1f} ms", f"{1000 * more:+.2f} ms", Text(ways))
    return rows


def _hop(peer: PeerId, span: Span) -> str:
    return f"{_name(peer)} {span}"


def _name(peer: PeerId) -> str:
    return printable(name_of(peer))
