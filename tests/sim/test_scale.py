"""Swarms of many: of one seed alike, no block uncovered by a move, and a lost region made up for."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from shoal.planning.throughput import ServingPeer
from shoal.routing.route import Stage
from shoal.swarm.announcement import Served
from shoal.testing.sim.__main__ import main
from shoal.testing.sim.scale.command import demands_of
from shoal.testing.sim.scale.deaths import believed_after_s, noticed_s
from shoal.testing.sim.scale.events import Events
from shoal.testing.sim.scale.measure import carried
from shoal.testing.sim.scale.mesh import DEGREE, HIGH, TopicMesh
from shoal.testing.sim.scale.plan import EXPIRY_S, ScalePlan
from shoal.testing.sim.scale.population import (
    CRASHES,
    HONEST,
    LOST,
    REGIONS,
    SHARES,
    VANISHES,
    make_population,
)
from shoal.testing.sim.scale.run import ScaleFigures, simulate_scale
from shoal.testing.sim.scale.state import RULES, HeardWord, KeptWords
from shoal.testing.sim.scale.swarm import UNNOTICED_S, ScaleSwarm
from shoal.testing.sim.scale.truth import least_s, route_s
from shoal.types import PeerId, Span

SMALL = ScalePlan(nodes=50, models=2, minutes=0.2, seed=3, sessions_s=0.5, draws=20)


@pytest.fixture(scope="module")
def figures() -> ScaleFigures:
    return simulate_scale(SMALL)


def test_the_same_seed_gives_the_same_swarm_and_another_one_another():
    plan = replace(SMALL, nodes=25, minutes=0.1)

    def seen(found: ScaleFigures) -> dict[str, object]:
        of_this_machine = ("cpu_s", "wall_s", "megabytes", "kept_megabytes")
        return {name: value for name, value in found.shown().items() if name not in of_this_machine}

    assert seen(simulate_scale(plan)) == seen(simulate_scale(plan))
    other = make_population(replace(SMALL, seed=4))
    assert not np.array_equal(other.speed[:50], make_population(SMALL).speed[:50])


def test_a_small_swarm_keeps_what_every_swarm_must(figures):
    lacking = [demand.name for demand in demands_of(SMALL, figures, None) if not demand.good]
    assert lacking == []
    assert figures.uncovered_by_moves == 0
    assert figures.first_p95_s > 0
    assert figures.failed == 0


@pytest.mark.parametrize(
    ("seen", "without", "lacking"),
    [
        ({"lookup_p95_s": 3.5}, {}, "a model never asked for is found"),
        ({"failed": 0.3}, {}, "1% of the sessions"),
        ({"failed": 0.3}, {"failed": 0.2}, "1% of the sessions"),
        ({"failed": 0.3}, {"failed": 0.3}, None),
        ({"gone_p95_s": math.inf}, {}, "a dead peer is unused"),
    ],
)
def test_what_every_swarm_must_keep_is_demanded_of_it(figures, seen, without, lacking):
    beside = {"first_p95_s": 1e9, "failed": 0.0} | without
    demands = demands_of(SMALL, replace(figures, **seen), beside)
    missed = [demand.name for demand in demands if not demand.good]
    assert len(missed) == (lacking is not None)
    assert all(name.startswith(lacking) for name in missed)


def test_a_death_that_nobody_notices_is_no_fast_one():
    swarm = ScaleSwarm(replace(SMALL, hostile=0.0, crowd=0))
    swarm.begin()
    swarm.events.run(20)
    dead, topic = swarm.nodes[0], swarm.topic(swarm.nodes[0])
    swarm._say(dead)
    swarm.events.run(25)
    for place in topic.neighbours(dead.place):  # they may suspect nobody
        swarm.nodes[int(topic.machines[place])].serving = False
    swarm.population.end[0] = VANISHES
    swarm._end(0)
    swarm.events.run(25 + UNNOTICED_S)
    assert swarm.seen.gone_s[0] == math.inf


def test_a_region_that_vanishes_is_made_up_for():
    """A node in three is there alone for its blocks: others go there, and nobody else is missed."""
    swarm = ScaleSwarm(replace(SMALL, hostile=0.0, crowd=0))
    swarm.begin()
    swarm.events.run(20)
    nodes = list(swarm.of_model[0].values())
    n_blocks = nodes[0].n_blocks
    alone = Span(n_blocks - 2, n_blocks)
    gone = [node for node in nodes if node.span.end > alone.start]
    for node in gone:
        swarm.population.end[node.index] = VANISHES
        swarm._end(node.index)
    assert carried(swarm).uncovered == len(alone)
    began = swarm.events.now
    while carried(swarm).uncovered and swarm.events.now < began + 120:
        swarm.events.run(swarm.events.now + 1)
    assert carried(swarm).uncovered == 0
    assert swarm.events.now - began < 90
    assert all(uncovered == 0 for _, uncovered in swarm.seen.moves)
    living = {node.index for node in nodes} - {node.index for node in gone}
    swarm.events.run(began + EXPIRY_S + 15)
    for index in living:
        assert not swarm.nodes[index].kept.words.keys() & {node.peer for node in gone}


def test_a_population_is_what_it_says():
    population = make_population(ScalePlan(nodes=4000, seed=1))
    there = population.joins_at == 0
    regions = np.bincount(population.region[there], minlength=len(REGIONS)) / there.sum()
    assert regions == pytest.approx(np.array(SHARES) / sum(SHARES), abs=0.03)
    assert (population.kind[there] != HONEST).mean() == pytest.approx(0.2, abs=0.02)
    assert population.crowd.sum() == 1000
    lives = population.ends_at - population.joins_at
    assert np.quantile(lives, 0.99) > 10 * np.median(lives)
    vanish_at = ScalePlan(nodes=4000, seed=1).vanish_at
    lost = (population.region == LOST) & (population.joins_at < vanish_at)
    assert (population.ends_at[lost] <= vanish_at).all()
    assert make_population(ScalePlan(nodes=4000, hostile=0.0)).kind.max() == HONEST


def test_events_come_in_their_order():
    events, seen = Events(), list[tuple[str, float]]()
    events.after(2.0, lambda: seen.append(("late", events.now)))
    events.after(1.0, lambda: events.at(0.5, lambda: seen.append(("at once", events.now))))
    events.run(1.5)
    assert seen == [("at once", 1.0)]
    events.run(3.0)
    assert seen == [("at once", 1.0), ("late", 2.0)]


def a_mesh(count: int) -> TopicMesh:
    population = make_population(ScalePlan(nodes=count, crowd=0))
    mesh = TopicMesh(population, count + 8, Random(1), np.random.default_rng(1))
    for machine in range(count):
        mesh.join(machine)
    return mesh


def test_gossip_reaches_all_in_less_than_a_second_over_a_mesh_of_few():
    mesh = a_mesh(300)
    degrees = [len(mesh.neighbours(place)) for place in range(300)]
    assert max(degrees) <= HIGH
    assert sum(degrees) / 300 < DEGREE + 3
    arrives = mesh.flood(7, 500)
    assert arrives[7] == 0.0
    assert np.isfinite(arrives).mean() > 0.99
    assert np.quantile(arrives[np.isfinite(arrives)], 0.95) < 1.0


def test_gossip_takes_no_way_over_the_dead_and_others_take_their_place():
    mesh = a_mesh(60)
    for place in range(0, 60, 3):
        mesh.stop(place)
    arrives = mesh.flood(1, 500)
    assert not np.isfinite(arrives[::3]).any()
    for place in range(0, 60, 3):
        mesh.forget(place)
    assert not any(other % 3 == 0 for place in range(1, 60) if place % 3 for other in mesh.neighbours(place))
    assert np.isfinite(mesh.flood(1, 500)).sum() >= 39


def a_word(index: int, start: int = 0, sequence: int = 1) -> HeardWord:
    served = Served("m", "sha256:" + "0" * 64, 32, 64, 64, 64, start, start + 4, "int8", 9, 9, 0, 1.0)
    return HeardWord(index, PeerId(f"p{index}"), 0, served, sequence, 400, 1e9)


def test_of_a_large_swarm_words_are_kept_as_the_product_keeps_them():
    kept, places = KeptWords(b"a key"), RULES.view_peers + RULES.drawn_peers
    for index in range(2 * places):
        kept.take(a_word(index))
    rare = [a_word(10**6 + number, 28) for number in range(4)]
    for word in rare:
        kept.take(word)
    assert len(list(kept.drawn)) == RULES.drawn_peers < len(kept.words) <= places
    assert kept.peers == pytest.approx(2 * places, rel=0.2)
    assert all(word.peer in kept.words for word in rare)
    newer = a_word(rare[0].index, 12, sequence=2)
    kept.take(newer)
    kept.take(rare[0])
    assert kept.words[newer.peer] is newer
    assert kept.drop(newer.peer, 1) is False
    assert kept.drop(newer.peer, 2) is True


def test_a_death_is_noticed_and_believed_within_an_expiry():
    chance = Random(1)
    for end in (CRASHES, VANISHES):
        firsts = [min(noticed_s(6, end, chance)) + believed_after_s(end) for _ in range(200)]
        assert max(firsts) < EXPIRY_S


def test_no_route_costs_less_than_the_least():
    swarm = ScaleSwarm(SMALL)
    swarm.begin()
    nodes = list(swarm.of_model[0].values())
    n_blocks = nodes[0].n_blocks
    whole = ServingPeer(Span(0, n_blocks), 1.0)
    for node in nodes[:6]:
        node.span = whole.span
    least = least_s(swarm.population, 49, nodes, n_blocks)
    by_peer = {node.peer: node for node in nodes}
    each = [route_s(swarm.population, 49, [Stage(node.peer, whole.span)], by_peer) for node in nodes[:6]]
    assert 0 < least <= min(each) + 1e-9


def test_the_command_says_what_held(monkeypatch, capsys):
    asked = ["--nodes", "20", "--models", "1", "--minutes", "0.1", "--hostile", "0", "--crowd", "0"]
    monkeypatch.setattr("sys.argv", ["sim", "scale", *asked, "--sessions", "0.2", "--draws", "5", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    found = json.loads(capsys.readouterr().out)
    assert found["nodes"] == 20
    assert ended.value.code == (0 if all(found["demands"].values()) else 1)
