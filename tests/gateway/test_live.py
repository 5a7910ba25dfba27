"""`/api/…`: what the page is told, at once and as it changes."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack

import trio

from shoal.gateway.page import feed
from shoal.gateway.page.apps import APPS, KEY_HINT, GatewayAddress
from shoal.net.identity import Identity
from shoal.swarm import member
from shoal.swarm.taking_part import speaker
from shoal.trust.operator import state
from shoal.types import Span
from tests.one_process import KERNELS

from .conftest import served, user


async def told(lines, wanted):
    """The data of the next event of that name."""
    with trio.fail_after(10):
        async for line in lines:
            if line == f"event: {wanted}":
                return json.loads((await anext(lines)).removeprefix("data: "))
    raise AssertionError(f"no {wanted}")


async def test_everything_comes_at_once_and_then_what_changes(gateway):
    async with gateway.http.stream("GET", "/api/events") as answer:
        lines = answer.aiter_lines()
        swarm = await told(lines, "swarm")
        assert [(peer["start"], peer["end"]) for peer in swarm["peers"]] == [(0, 2), (2, 3), (3, 6)]
        assert swarm["models"][0]["runs"] == [[0, 6, 1]]
        assert await told(lines, "requests") == []
        assert (await told(lines, "health"))["ok"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gateway.chat)
            token = await told(lines, "token")
        assert token["route"] == [peer["peer"] for peer in swarm["peers"]]
        (request,) = await told(lines, "requests")
        assert request["id"] == token["request"]
        await gateway.swarm.add_node(Span(0, 6), **KERNELS)
        while len(swarm["peers"]) < 4:
            swarm = await told(lines, "swarm")
        assert swarm["models"][0]["runs"] == [[0, 6, 2]]


async def test_distances_are_measured_in_turn_where_there_are_many(gateway, monkeypatch):
    monkeypatch.setattr(feed, "PINGED", 1)
    monkeypatch.setattr(feed, "PING_EVERY_S", 0.05)
    asked = []

    async def ping(peer, *, deadline_s):
        asked.append(peer)
        return 0.001 * len(asked)

    monkeypatch.setattr(gateway.swarm.client.network, "ping", ping)
    async with gateway.http.stream("GET", "/api/events") as answer:
        lines = answer.aiter_lines()
        with trio.fail_after(30):
            while len(set(asked)) < 3 or asked.count(asked[0]) < 2:  # noqa: ASYNC110
                await trio.sleep(0.05)
            swarm = await told(lines, "swarm")
            while not all(peer["rtt_ms"] for peer in swarm["peers"]):
                swarm = await told(lines, "swarm")


async def test_the_page_notes_that_this_machine_runs_an_older_release(tmp_path, checkpoint, monkeypatch):
    async with AsyncExitStack() as stack:
        with monkeypatch.context() as patch:
            for part in (speaker, member):
                patch.setattr(part, "AGENT", "shoal/99.1")  # as the nodes announce it
            gateway = await stack.enter_async_context(served(tmp_path, checkpoint))
            assert (await gateway.http.get("/api/health")).json()["checks"] == []
        health = (await gateway.http.get("/api/health")).json()
    (note,) = health["checks"]
    assert (health["ok"], note["name"], note["severity"]) == (True, "release", "note")
    assert note["message"].endswith("3 of 3 peers a newer release, such as 99.1: upgrade it")


async def test_a_request_is_told_hop_by_hop(gateway):
    await gateway.chat(max_tokens=8)
    (request,) = (await gateway.http.get("/api/requests")).json()
    assert request["state"] == "done"
    assert [stage["end"] for stage in request["route"]] == [2, 3, 6]
    assert len(request["hops"]) == 3
    assert all(hop["compute_ms"] > 0 and hop["network_ms"] >= 0 for hop in request["hops"])


async def test_a_page_that_leaves_is_forgotten_and_too_many_are_told_so(gateway, monkeypatch):
    monkeypatch.setattr(feed, "LISTENERS", 1)
    async with gateway.http.stream("GET", "/api/events") as answer:
        await told(answer.aiter_lines(), "swarm")
        refused = await gateway.http.get("/api/events")
        assert refused.status_code == 429
    with trio.fail_after(25):
        while gateway.gateway.feed.full:  # noqa: ASYNC110
            await trio.sleep(0.01)


async def test_names_of_peers_and_models_are_only_data(tmp_path, checkpoint):
    """What others call themselves reaches the page as JSON, under a policy that runs no script of theirs."""
    async with served(tmp_path, checkpoint) as gateway:
        answer = await gateway.chat(model="<script>alert(1)</script>")
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        page = await gateway.http.get("/")
        assert "script-src 'self'" in page.headers["content-security-policy"]


async def test_one_conversation_at_a_time_is_kept_and_no_more_than_there_is_room_for(gateway):
    for number in range(12):
        await gateway.post("/v1/chat/completions", messages=[user(f"{number} is another conversation")])
    assert gateway.gateway.prefixes.kept <= 8
    await gateway.idle()


async def test_this_machine_is_looked_over_once_and_then_only_for_those_who_listen(
    tmp_path, checkpoint, monkeypatch
):
    monkeypatch.setattr(feed, "HEALTH_EVERY_S", 0.05)
    looked = []

    def health():
        looked.append(len(looked))
        return [{"name": "disk", "ok": True}]

    async with served(tmp_path, checkpoint, health=health) as gateway:
        await trio.sleep(0.5)
        assert looked == [0]
        assert (await gateway.http.get("/api/health")).json() == {"ok": True, "checks": health()}
        async with gateway.http.stream("GET", "/api/events") as answer:
            lines = answer.aiter_lines()
            while len(looked) < 5:
                await told(lines, "health")


async def test_whose_machine_a_peer_is_stands_beside_it(gateway):
    operator, node = Identity.from_seed(bytes(32)), gateway.swarm.nodes[0].member
    now = trio.current_time()
    node._speaker._operator = state(operator.peer, node.network.peer, now, 1, operator.sign)
    await node.announce()
    async with gateway.http.stream("GET", "/api/events") as answer:
        lines, owned = answer.aiter_lines(), set()
        with trio.fail_after(10):
            while operator.peer not in owned:
                owned = {peer["operator"] for peer in (await told(lines, "swarm"))["peers"]}
    assert owned == {operator.peer, None}


async def test_links_go_to_those_whom_we_reach_and_along_the_routes_of_answers(gateway, monkeypatch):
    monkeypatch.setattr(feed, "PING_EVERY_S", 0.1)
    await gateway.chat()
    shown = (await gateway.http.get("/api/swarm")).json()["peers"]
    peers = [peer["peer"] for peer in shown]
    assert [peer["operator"] for peer in shown] == [None] * 3
    async with gateway.http.stream("GET", "/api/events") as answer:
        lines, links = answer.aiter_lines(), {}
        ours = gateway.swarm.client.network.peer
        while not all(links.get((ours, peer)) is not None for peer in peers):
            view = await told(lines, "swarm")
            links = {(link["a"], link["b"]): link["rtt_ms"] for link in view["links"]}
        assert {(peers[0], peers[1]), (peers[1], peers[2])} <= links.keys()
        gateway.swarm.kill(2)
        while (ours, peers[2]) in links:
            links = {(link["a"], link["b"]) for link in (await told(lines, "swarm"))["links"]}


async def test_the_page_is_told_what_programs_need_as_the_command_line_does_it(gateway):
    query = {"origin": "https://swarm.example.org", "model": "m", "keyed": "true"}
    told = (await gateway.http.get("/api/apps", params=query)).json()
    place = GatewayAddress("https://swarm.example.org", "m", KEY_HINT)
    assert [(one["id"], one["text"]) for one in told] == [(app.name, app.lines(place)) for app in APPS]
    for wrong in ({}, {"origin": "x"}, {"origin": "x" * 2000, "model": "m"}):
        assert (await gateway.http.get("/api/apps", params=wrong)).status_code == 400


async def test_what_the_swarm_offers_is_told_as_the_command_line_does_it(gateway):
    found = (await gateway.http.get("/api/market")).json()
    (model,) = found["models"]
    assert (model["name"], model["peers"], model["protection"]) == (gateway.model, 3, ["fast"])
    assert [(span["start"], span["end"], span["found_out"]) for span in found["spans"]] == [
        (0, 2, False),
        (2, 3, False),
        (3, 6, False),
    ]
    table = await gateway.http.get("/api/market.csv")
    assert table.headers["content-type"].startswith("text/csv")
    names, *rows = table.text.splitlines()
    assert names.startswith("model,digest,start,end,peer,")
    assert [row.split(",")[4] for row in rows] == [span["peer"] for span in found["spans"]]
