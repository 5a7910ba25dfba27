"""One run: rest, a crowd, the minutes after it, and the loss of a region; what was seen of it all."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shoal.testing.sim.scale.figures import percentile
from shoal.testing.sim.scale.measure import (
    RouteCosts,
    SwarmTokens,
    carried,
    entries_s,
    gossiped_bytes,
    kept_bytes,
    kept_peers,
    lookups_s,
    quiet_bytes_s,
    route_costs,
)
from shoal.testing.sim.scale.plan import CROWD_S, ScalePlan
from shoal.testing.sim.scale.sessions import Clients
from shoal.testing.sim.scale.swarm import ScaleSwarm

SETTLED_S = 20.0
"""Until what was said at the start is with everybody."""
WATCH_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class ScaleFigures:
    """What was seen. Times in seconds; of bytes, kilobytes have 1000."""

    nodes: int
    kilobytes_s: float
    """That a node sends in a second while only some come and go."""
    kept_peers: float
    """Announcements that a node keeps."""
    kept_megabytes: float
    """What they take in the product's directory."""
    news_p95_s: float
    """Until a node's new place is known to a peer of its model."""
    news_all_p95_s: float
    """The same, until it is known to 95% of them, for the slowest twentieth of the news."""
    gone_p95_s: float
    """From a death without a word until the last who knew the peer takes it for gone."""
    gone_region_p95_s: float
    """The same, of the machines of the region that is lost at once."""
    lookup_p95_s: float
    """Until a model is found that was never asked for, by those whom a member knows to enter it; of models
    of which somebody is left."""
    lookup_dht_p95_s: float
    """The same by the DHT alone, as far as anybody was found within the deadline."""
    lookup_dht_failed: float
    """Share of the look-ups by the DHT that found nobody by then."""
    route_whole: float
    """Cost of a route from a view, in shares of one by the same rules from all announcements: the median."""
    route_optimum: float
    """The same in shares of the least possible, with every way and speed known; the ways from the client to
    its view are estimated by coordinates."""
    route_optimum_p90: float
    route_measured: float
    """The same, where the client has measured all ways to its view."""
    route_unmeasured: float
    """The same, where it knows none of them."""
    tokens_s: float
    """Of all models, ``minutes`` after the crowd."""
    tokens_share: float
    """In shares of the optimum."""
    tokens_share_crowd: float
    """The same when the last of the crowd has come."""
    uncovered_by_moves: int
    """Blocks that a move left to nobody."""
    uncovered_by_ends: int
    """Blocks whose last peer went or died, before the region was lost."""
    moves_rest: float
    """Of a node in an hour, before the crowd."""
    moves_after: float
    """The same after the crowd."""
    first_p50_s: float
    """Until the first token of a session, before the region is lost."""
    first_p95_s: float
    failed: float
    """Share of the sessions that found no route."""
    whole_s: float
    """From the loss of a region until every block that was covered is so again; infinite if never."""
    uncovered_by_loss: int
    """Blocks that the loss of the region left to nobody."""
    events: int
    cpu_s: float
    """That the simulation took of one core."""
    wall_s: float
    megabytes: float
    """Of memory that the simulation took."""

    def shown(self) -> dict[str, Any]:
        """Rounded, for people and JSON, which knows no infinity."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


def simulate_scale(plan: ScalePlan, say: Callable[[str], None] = lambda _: None) -> ScaleFigures:
    """Run a plan.

    Args:
        say: told of each part that is over.
    """
    run = _Run(plan, say)
    run.rest()
    run.crowd()
    run.vanish()
    return run.figures()


class _Run:
    def __init__(self, plan: ScalePlan, say: Callable[[str], None]) -> None:
        self.plan = plan
        self._say = say
        self._began = time.perf_counter()
        self.swarm = ScaleSwarm(plan)
        self.swarm.begin()
        self.clients = Clients(self.swarm)
        self.clients.begin()
        self._tell("begun")

    def rest(self) -> None:
        """Nothing happens but that some come and go."""
        swarm, plan = self.swarm, self.plan
        swarm.events.run(SETTLED_S)
        before = gossiped_bytes(swarm)
        swarm.events.run(plan.crowd_at)
        seconds = plan.crowd_at - SETTLED_S
        gossip = (gossiped_bytes(swarm) - before) / seconds / len(swarm.nodes)
        self.bytes_s = gossip + quiet_bytes_s(swarm)
        self.kept = kept_peers(swarm)
        self.kept_bytes = kept_bytes(swarm.served(next(iter(swarm.nodes.values()))))
        self.rest_moves = self._moves_an_hour(0.0, plan.crowd_at)
        self._tell(f"rest, {self.bytes_s / 1e3:.1f} kB/s")

    def crowd(self) -> None:
        """Many come at once, and the swarm has some minutes."""
        swarm, plan = self.swarm, self.plan
        swarm.events.run(plan.crowd_at + CROWD_S)
        self.crowded: SwarmTokens = carried(swarm)
        self._tell(f"crowd, {self.crowded.tokens_s / self.crowded.optimum:.3f} of the optimum")
        swarm.events.run(plan.vanish_at - 0.1)
        self.carried: SwarmTokens = carried(swarm)
        self.after_moves = self._moves_an_hour(plan.crowd_at + CROWD_S, swarm.events.now)
        self.routes: RouteCosts = route_costs(swarm, plan.draws, "coordinates")
        self.measured: RouteCosts = route_costs(swarm, plan.draws, "measured")
        self.unmeasured: RouteCosts = route_costs(swarm, plan.draws, "none")
        self.lookups = lookups_s(swarm, plan.draws)
        self.entered = entries_s(swarm, plan.draws)
        share = self.carried.tokens_s / self.carried.optimum
        self._tell(f"after the crowd, {share:.3f} of the optimum, routes {self.routes.optimum:.2f}")

    def vanish(self) -> None:
        """A region is lost."""
        swarm, plan = self.swarm, self.plan
        covered = [blocks > 0 for blocks in swarm.covered]
        self.whole_s, self.lost_blocks, missing = 0.0, 0, 0
        while swarm.events.now < plan.ends_at:
            swarm.events.run(swarm.events.now + WATCH_EVERY_S)
            pairs = zip(covered, swarm.covered, strict=True)
            missing = sum(int((before & (now == 0)).sum()) for before, now in pairs)
            self.lost_blocks = max(self.lost_blocks, missing)
            if missing:
                self.whole_s = swarm.events.now + WATCH_EVERY_S - plan.vanish_at
        if missing:
            self.whole_s = math.inf
        self._tell("a region is lost")

    def figures(self) -> ScaleFigures:
        """All of it."""
        seen, plan = self.swarm.seen, self.plan
        delays = np.concatenate(seen.news_s) if seen.news_s else np.array([])
        each = [percentile(one, 0.95) for one in seen.news_s if len(one)]
        ends = [(float(self.swarm.population.ends_at[index]), after) for index, after in seen.gone_s.items()]
        gone = [after for at, after in ends if at < plan.vanish_at]
        region = [after for at, after in ends if at == plan.vanish_at]
        before = [one for one in self.clients.sessions if one.began < plan.vanish_at]
        firsts = [one.first_s for one in before if math.isfinite(one.first_s)]
        found = [one for one in self.lookups if math.isfinite(one)]
        entered = [one for one in self.entered if math.isfinite(one)]
        return ScaleFigures(
            nodes=plan.nodes,
            kilobytes_s=self.bytes_s / 1e3,
            kept_peers=self.kept,
            kept_megabytes=self.kept * self.kept_bytes / 1e6,
            news_p95_s=percentile(delays, 0.95),
            news_all_p95_s=percentile(each, 0.95),
            gone_p95_s=percentile(gone, 0.95),
            gone_region_p95_s=percentile(region, 0.95),
            lookup_p95_s=percentile(entered, 0.95),
            lookup_dht_p95_s=percentile(found, 0.95),
            lookup_dht_failed=1 - len(found) / max(1, len(self.lookups)),
            route_whole=self.routes.whole,
            route_optimum=self.routes.optimum,
            route_optimum_p90=self.routes.optimum_p90,
            route_measured=self.measured.optimum,
            route_unmeasured=self.unmeasured.optimum,
            tokens_s=self.carried.tokens_s,
            tokens_share=self.carried.tokens_s / self.carried.optimum,
            tokens_share_crowd=self.crowded.tokens_s / self.crowded.optimum,
            uncovered_by_moves=sum(blocks for _, blocks in seen.moves),
            uncovered_by_ends=sum(blocks for at, blocks in seen.lost_blocks if at < plan.vanish_at),
            moves_rest=self.rest_moves,
            moves_after=self.after_moves,
            first_p50_s=percentile(firsts, 0.5),
            first_p95_s=percentile(firsts, 0.95),
            failed=1 - len(firsts) / max(1, len(before)),
            whole_s=self.whole_s,
            uncovered_by_loss=self.lost_blocks,
            events=self.swarm.events.count,
            cpu_s=time.process_time(),
            wall_s=time.perf_counter() - self._began,
            megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        )

    def _moves_an_hour(self, begin: float, end: float) -> float:
        moves = sum(begin <= at < end for at, _ in self.swarm.seen.moves)
        return moves / len(self.swarm.nodes) / ((end - begin) / 3600)

    def _tell(self, what: str) -> None:
        spent = time.perf_counter() - self._began
        self._say(
            f"{what}: {len(self.swarm.nodes)} nodes, {spent:.0f} s, {time.process_time():.0f} s of a core"
        )


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return round(value, 3) if math.isfinite(value) else None
