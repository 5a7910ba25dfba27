"""Three node processes and their clients: exact tokens, every kind of caller, nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import trio

import shoal
from shoal import config
from shoal.errors import NoCoverage, NotAllowed
from shoal.net.identity import verify
from shoal.swarm import membership
from shoal.swarm.invite import write_invite
from shoal.trust.answer import check_answer, read_kept_answer

pytestmark = pytest.mark.swarm
PROMPT = list(range(5, 25))


@pytest.fixture(scope="module")
def expected(one_process):
    """Greedy tokens of the model in one process."""
    return one_process.greedy(PROMPT, 16)


def cut(tokens, end_tokens=(2,)):
    """Up to the first end token, as an answer is."""
    ends = [i for i, token in enumerate(tokens) if token in end_tokens]
    return tokens[: ends[0] + 1] if ends else tokens


def run(swarm, *argv, **options):
    """A `shoal` command of its own process, in the same home."""
    env = {**os.environ, "SHOAL_HOME": str(swarm.home), "SHOAL_HOST": "127.0.0.1", "SHOAL_MDNS": "0"}
    command = [sys.executable, "-m", "shoal.cli", *argv]
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=60, check=False, **options
    )


def test_a_synchronous_caller_gets_the_tokens_of_one_process(swarm, expected):
    with swarm.connect() as connected:
        answer = connected.generate(swarm.model, PROMPT, max_tokens=16)
        deltas = list(answer)
    assert answer.answer.token_ids == cut(expected)
    assert len(deltas) == len(cut(expected))
    assert {stage.carrier for stage in answer.answer.route} == {"direct"}


def test_a_synchronous_session_gives_logits_and_rolls_back(swarm, one_process):
    one_process.restart()
    reference = one_process.step(PROMPT)
    with swarm.connect() as connected, connected.session(swarm.model, tokens=64) as session:
        logits = session.step(PROMPT)
        session.roll_back(0)
        again = session.step(PROMPT)
    assert np.array_equal(logits, reference)
    assert np.array_equal(again, reference)


def opened_at(node):
    """The blocks of each session that a node has traced, by the session."""
    with urllib.request.urlopen(f"{node['figures']}/trace", timeout=5) as answer:
        steps = json.load(answer)["node"]["steps"]
    return {step["session"]: step["hops"][0]["span"] for step in steps}


def test_the_blocks_that_a_client_keeps_are_opened_at_no_node(swarm, expected):
    with swarm.connect(private_ends="1:1") as connected:
        answer = connected.generate(swarm.model, PROMPT, max_tokens=16)
        assert len(list(answer)) == len(cut(expected))
        step = connected.swarm.rings.trace.steps[-1]
    assert answer.answer.token_ids == cut(expected)
    assert [opened_at(node)[step.session] for node in swarm.local.nodes] == ["1:2", "2:4", "4:5"]
    assert [str(own.span) for own in answer.answer.own] == ["0:1", "5:6"]
    with swarm.connect(private_ends="2:1") as connected, connected.session(swarm.model, tokens=64) as session:
        assert int(session.step(PROMPT)[-1].argmax()) == expected[0]
        step = connected.swarm.rings.trace.steps[-1]
    assert [opened_at(node).get(step.session) for node in swarm.local.nodes] == [None, "2:4", "4:5"]


def test_an_asyncio_caller_gets_the_same(swarm, expected):
    async def go():
        async with swarm.connect() as connected:
            answer = connected.generate(swarm.model, PROMPT, max_tokens=16)
            async for _ in answer:
                pass
            async with connected.session(swarm.model, tokens=64) as session:
                logits = await session.step(PROMPT)
            return answer.answer.token_ids, int(logits[-1].argmax())

    tokens, first = asyncio.run(go())
    assert tokens == cut(expected)
    assert first == expected[0]


def test_a_trio_caller_gets_the_same(swarm, expected):
    async def go():
        async with swarm.connect() as connected:
            answer = connected.generate(swarm.model, PROMPT, max_tokens=16)
            async for _ in answer:
                pass
            return answer.token_ids

    assert trio.run(go) == cut(expected)


def test_without_the_direct_carrier_the_libp2p_stream_is_taken(swarm, expected):
    with swarm.connect(direct=False) as connected:
        answer = connected.generate(swarm.model, PROMPT, max_tokens=16)
        list(answer)
    assert answer.answer.token_ids == cut(expected)
    assert {stage.carrier for stage in answer.answer.route} == {"libp2p-stream"}


def test_where_no_other_way_leads_iroh_is_taken_and_the_command_line_names_it(swarm, expected, monkeypatch):
    with swarm.connect(direct=False, iroh=True) as connected:
        answer = connected.generate(swarm.model, PROMPT, max_tokens=16)
        list(answer)
    assert answer.answer.token_ids == cut(expected)
    assert {stage.carrier for stage in answer.answer.route} == {"iroh"}
    monkeypatch.setenv("SHOAL_DIRECT", "off")
    monkeypatch.setenv("SHOAL_IROH", "on")
    ping = run(swarm, "ping", "--swarm", "demo", "--json")
    assert ping.returncode == 0, ping.stderr
    assert {(peer["carrier"], peer["way"]) for peer in json.loads(ping.stdout)["peers"]} == {("iroh", "iroh")}


def tokens_free(connected):
    return sorted(a.served.tokens_free for a in connected.announcements())


def test_ten_clients_at_once_each_get_their_own_tokens_and_leave_nothing(swarm, one_process):
    answers = {}

    async def one(connected, number):
        answer = connected.generate(swarm.model, [number + 3, 7, 2 * number + 5], max_tokens=10)
        async for _ in answer:
            pass
        answers[number] = answer.token_ids

    async def go():
        async with swarm.connect() as connected, trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(one, connected, number)

    trio.run(go)
    for number, tokens in answers.items():
        assert tokens == cut(one_process.greedy([number + 3, 7, 2 * number + 5], 10))
    assert_idle(swarm)


def assert_idle(swarm, within_s=60.0):
    """Every node announces, sooner or later, that all its KV is free."""
    with swarm.connect() as connected:
        until = time.monotonic() + within_s
        while True:
            served = [a.served for a in connected.announcements()]
            if len(served) == 3 and all(s.tokens_free == s.tokens and s.sessions == 0 for s in served):
                return
            assert time.monotonic() < until, served
            time.sleep(0.2)


def test_a_killed_client_frees_its_kv_on_every_hop(swarm):
    code = (
        "import shoal, sys, time\n"
        "with shoal.connect(invite=sys.argv[1], host='127.0.0.1', mdns=False) as swarm:\n"
        "    with swarm.session(sys.argv[2], tokens=200) as session:\n"
        "        session.step([1, 2, 3]); print('stepped', flush=True); time.sleep(60)\n"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", code, swarm.invite, swarm.model], stdout=subprocess.PIPE, text=True
    )
    assert client.stdout.readline().strip() == "stepped"
    client.send_signal(signal.SIGKILL)
    client.wait()
    client.stdout.close()
    assert_idle(swarm, within_s=25.0)


def test_a_stranger_is_refused_and_learns_nothing(swarm):
    stranger = membership.create("elsewhere", swarm.local.membership.bootstrap)
    with (
        shoal.connect(invite=write_invite(stranger), host="127.0.0.1", mdns=False) as connected,
        pytest.raises(NoCoverage, match="0 other peers are known"),
        connected.session(swarm.model),
    ):
        pass


def test_the_public_swarm_needs_a_word(home):
    with pytest.raises(NotAllowed), shoal.connect("public"):
        pass


def test_the_command_line_shows_and_asks_the_swarm(swarm, expected):
    joined = run(swarm, "join", swarm.invite)
    assert joined.returncode == 0, joined.stderr
    status = run(swarm, "status", "--swarm", "demo", "--json")
    assert status.returncode == 0, status.stderr
    shown = json.loads(status.stdout)
    assert len(shown["peers"]) == 3
    ping = run(swarm, "ping", "--swarm", "demo", "--json")
    assert {peer["carrier"] for peer in json.loads(ping.stdout)["peers"]} == {"direct"}


def test_an_answer_is_kept_with_the_receipts_of_its_hops(swarm, expected, tmp_path):
    with swarm.connect() as connected:
        answer = connected.generate(swarm.model, PROMPT, max_tokens=16, receipts=True)
        list(answer)
    receipts = answer.answer.receipts
    assert (receipts.faults, receipts.kept.token_ids) == ((), (*PROMPT, *cut(expected)))
    asked = ("--swarm", "demo", "--max-tokens", "8", "--receipts", str(tmp_path / "answer.json"))
    ran = run(swarm, "run", swarm.model, "hello", *asked, stdin=subprocess.DEVNULL)
    assert (ran.returncode, "3 of 3 hops have signed the answer" in ran.stderr) == (0, True), ran.stderr
    kept = read_kept_answer((tmp_path / "answer.json").read_bytes(), "answer.json")
    assert len(kept.hops) == 3
    assert check_answer(kept, verify) == []


def test_settings_reach_the_nodes(swarm):
    assert config.load({}).paths.data == swarm.home
