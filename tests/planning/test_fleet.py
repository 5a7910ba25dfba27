"""Fleets: every block is served as often as memory allows, and no machine holds more than it has."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shoal
from shoal.errors import OutOfResources, UsageError
from shoal.planning.fleet.commands import FleetModel, fleet_steps
from shoal.planning.fleet.dealing import FleetPlan, place_fleet
from shoal.planning.fleet.machines import Described, read_fleet
from shoal.planning.level import MANY
from shoal.planning.pipeline import Workload
from shoal.planning.roofline import Machine, PartCost, SpanCost
from shoal.testing.checkpoints import FAMILIES

# A block takes 1,000 bytes, and 16 for each token of a session.
BLOCK = PartCost(500, "bf16", kv_elements=8, kv="bfloat16", attention=8)
HEAD = PartCost(1000, "bf16")
MODEL = SpanCost((BLOCK,) * 12, 8, HEAD)
PLAIN = Machine("plain", 20_000, bandwidth=1e6, ops={"fp32": 1e8}, link=1e9, rtt_s=1e-3)
LOAD = Workload(sessions=50, context=16, row_bytes=16)


def fifty() -> list[Machine]:
    """Of five sizes, the largest of which hold the model, and the smallest no block; of three speeds."""
    sizes = (40_000, 20_000, 9_000, 6_000, 1_200)
    return [replace(PLAIN, name=f"m{i}", memory=sizes[i % 5], bandwidth=1e6 * (1 + i % 3)) for i in range(50)]


def check(plan: FleetPlan, machines: list[Machine]) -> None:
    """What holds of every plan."""
    seen = [place.machine for place in plan.places] + [one.machine for one in plan.left_out]
    assert len(set(seen)) == len(seen)
    for place in plan.places:
        ends = plan.cost.client.bytes if place.machine == 0 else 0
        assert place.weights + place.kv + ends <= machines[place.machine].memory
        part = plan.cost.part(place.span)
        assert place.kv == place.sessions * part.kv_held(plan.load.context)
    for number, route in enumerate(plan.routes):
        spans = [stage.span for stage in route.plan.stages]
        assert [span.start for span in spans] == [0, *(span.end for span in spans[:-1])]
        assert spans[-1].end == len(plan.cost.blocks)
        assert [place.machine for place in plan.places if place.route == number] == sorted(route.machines)
    assert sum(route.plan.many.sessions for route in plan.routes) >= plan.load.sessions
    assert min(plan.peers) >= len(plan.routes)


def test_fifty_machines_are_dealt_to_as_many_routes_as_find_room() -> None:
    machines = fifty()
    plan = place_fleet(machines, MODEL, LOAD)
    check(plan, machines)
    assert {machines[one.machine].memory for one in plan.left_out} == {1_200}
    assert all(one.lacking == 1_000 + plan.places[0].sessions * 256 - 1_200 for one in plan.left_out)
    assert len(plan.places) + len(plan.left_out) == 50
    # Ten hold the model alone, and of the other thirty two or three do together.
    assert len(plan.routes) >= 20
    assert max(len(route.machines) for route in plan.routes) <= 3


def test_a_plan_of_many_machines_is_the_same_each_time() -> None:
    machines = [replace(PLAIN, name=f"m{i}", memory=9_000) for i in range(100)]
    plans = [place_fleet(machines, MODEL, replace(LOAD, sessions=3)) for _ in range(2)]
    assert sum(place.route is None for place in plans[0].places) > MANY
    assert plans[0].places == plans[1].places


def test_more_routes_are_faster_than_one_over_all_machines() -> None:
    machines = [replace(PLAIN, name=f"m{i}", memory=40_000) for i in range(6)]
    many, one = (place_fleet(machines, MODEL, replace(LOAD, sessions=n)) for n in (6, 1))
    assert (len(many.routes), len(one.routes)) == (6, 1)
    # The gateway's machine is busy with the heads of all, so that its own route is slower.
    each = one.rate
    assert 5 * each <= many.rate < 6 * each
    assert many.gateway_heads < 1 < many.gateway_busy
    assert [place.route for place in one.places].count(None) == 5  # they serve too, beside the route
    assert min(one.peers) == 6


def test_what_is_lost_to_a_gateway_that_is_too_slow_is_told() -> None:
    machines = [replace(PLAIN, name=f"m{i}", memory=40_000) for i in range(6)]
    slow = [replace(machines[0], bandwidth=2e5), *machines[1:]]
    fast, held_up = (place_fleet(each, MODEL, replace(LOAD, sessions=6)) for each in (machines, slow))
    assert held_up.gateway_heads > 1 > fast.gateway_heads
    assert held_up.rate < fast.rate / 1.5


def test_what_does_not_fit_once_says_how_much_is_lacking() -> None:
    small = [replace(PLAIN, name=f"m{i}", memory=2_000) for i in range(3)]
    with pytest.raises(OutOfResources, match=r"GiB of memory are lacking.*of 12 find no room"):
        place_fleet(small, MODEL, replace(LOAD, sessions=1))
    with pytest.raises(OutOfResources, match="plain, which has the client, lacks"):
        place_fleet([replace(PLAIN, memory=1_000), PLAIN], MODEL, LOAD)


def test_a_gateway_without_room_for_a_block_leaves_the_blocks_to_others() -> None:
    machines = [replace(PLAIN, name="small", memory=2_100), *[replace(PLAIN, memory=40_000)] * 2]
    plan = place_fleet(machines, MODEL, replace(LOAD, sessions=2))
    check(plan, machines)
    assert [place.machine for place in plan.places] == [1, 2]
    said = [Described(name=name) for name in ("small", "b", "c")]
    steps = list(fleet_steps(plan, machines, said, FleetModel("m", "int8", "auto", "")))
    assert steps[0].commands[-1] == "shoal invite > invite"
    assert steps[1].machine == "small"
    assert steps[1].commands == ("shoal join - < invite", "shoal gateway --model m")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(800, 30_000), st.sampled_from([3e5, 1e6, 4e6])), min_size=1, max_size=9),
    st.integers(1, 12),
)
def test_no_machine_ever_holds_more_than_it_has(sizes: list[tuple[int, float]], sessions: int) -> None:
    machines = [
        replace(PLAIN, name=f"m{i}", memory=memory, bandwidth=speed)
        for i, (memory, speed) in enumerate(sizes)
    ]
    try:
        plan = place_fleet(machines, MODEL, replace(LOAD, sessions=sessions))
    except OutOfResources:
        return
    check(plan, machines)


def test_commands_say_all_that_the_plan_counts_on() -> None:
    machines = [replace(PLAIN, memory=1 << 30)]
    plan = place_fleet(machines, MODEL, Workload(80, 1000, 16))
    said = [Described(name="desk", address="10.0.0.1", device="cuda:1", threads=6)]
    what = FleetModel("a model", "int8", "int8", "office")
    (step,) = fleet_steps(plan, machines, said, what)
    words = shlex.split(step.commands[0])
    assert words[:4] == ["SHOAL_KV_TOKENS=80000", "SHOAL_MAX_SESSIONS=80", "shoal", "serve"]
    assert words[4:] == [
        "a model",
        "--span",
        "0:12",
        "--format",
        "int8",
        "--kv",
        "int8",
        "--memory",
        "1023MiB",
        "--device",
        "cuda:1",
        "--threads",
        "6",
        "--swarm",
        "office",
    ]
    assert step.commands[1:] == (
        "shoal invite --swarm office > invite",
        "shoal gateway --model 'a model' --swarm office",
    )
    (public,) = fleet_steps(plan, machines, said, replace(what, swarm="public"))
    assert not [command for command in public.commands if "invite" in command]


WHOLE = 'memory = "1MiB"\nbandwidth = "1GB/s"\nops = "1G"\n'


def test_the_library_plans_a_file(tmp_path: Path) -> None:
    FAMILIES["llama"]().save_pretrained(tmp_path / "llama")
    file = tmp_path / "fleet.toml"
    file.write_text(
        f'model = "{tmp_path / "llama"}"\nformat = "int8"\nsessions = 4\ncontext = 64\n'
        f'[[machine]]\nname = "a"\ncount = 3\n{WHOLE}'
    )
    found = shoal.plan_fleet(file)
    assert [machine.name for machine in found.machines] == ["a 1", "a 2", "a 3"]
    assert (found.asked.format, found.asked.load.sessions, found.asked.load.context) == ("int8", 4, 64)
    assert found.stand_ins == [] and len(found.steps) == 3
    assert shoal.plan_fleet(file, format="fp32").asked.format == "fp32"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'[[machine]]\nname = "a"\n{WHOLE}' * 2, "two machines are named 'a'"),
        (
            f'[[machine]]\naddress = "h"\n{WHOLE}[[machine]]\naddress = "h"\n{WHOLE}',
            "two machines have the address 'h'",
        ),
        (f'[[machine]]\ncount = 2\naddress = "h"\n{WHOLE}', "two machines have the address 'h'"),
        (
            f'[[machine]]\nname = "a"\nbandwidth = "1GB/s"\nops = "1G"\n[[machine]]\n{WHOLE}',
            "the memory of a is missing",
        ),
    ],
)
def test_a_fleet_that_makes_no_sense_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(f'model = "m"\n{text}')
    with pytest.raises(UsageError, match=said):
        shoal.plan_fleet(file)


@pytest.mark.parametrize(
    ("above", "said"),
    [
        ("colour = 1", "unknown key 'colour'"),
        ('format = "fp3"', "'fp3' for format"),
        ("sessions = 0", "'0' for sessions"),
        ('model = "--help"', "'--help' for model"),
        ('swarm = ""', "'' for swarm"),
    ],
)
def test_what_stands_above_the_machines_is_checked(tmp_path: Path, above: str, said: str) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(f"{above}\n[[machine]]\n{WHOLE}")
    with pytest.raises(UsageError, match=said):
        read_fleet(file)
