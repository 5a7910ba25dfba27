"""Credits over a swarm: who gives goes before who only takes, whoever it says that it is."""

from __future__ import annotations

import shutil
from contextlib import AsyncExitStack

import pytest
import trio

from shoal.errors import Busy
from shoal.ledger.credits import credit_book
from shoal.ledger.credits.credit_file import CreditFile
from shoal.node.paying import credit_desk
from shoal.types import Span

from .conftest import PROMPT, memory_swarm

WHOLE = Span(0, 6)
ALLOWANCE = 100
"""Units: less than an answer takes."""


@pytest.fixture(autouse=True)
def small_and_soon(monkeypatch):
    monkeypatch.setattr(credit_book, "ALLOWANCE", ALLOWANCE)
    monkeypatch.setattr(credit_desk, "FLUSH_S", 0.02)


async def answered(client, model):
    answer = client.generate(str(model.path), PROMPT, max_tokens=8)
    return [token async for delta in answer for token in delta.token_ids]


def machine(swarm, name):
    """A home of its own, in which the model is known: to describe it again takes seconds."""
    home = swarm.settings.paths.data.parent / name
    shutil.copytree(swarm.settings.paths.models, home / "models")
    return home


async def until(found):
    """Wait until something is so."""
    with trio.fail_after(10):
        while not found():  # noqa: ASYNC110
            await trio.sleep(0.02)


async def test_with_a_full_node_who_gives_goes_before_who_takes_and_a_new_name_is_of_no_use(
    tmp_path, checkpoint
):
    async with memory_swarm(tmp_path / "home", checkpoint, []) as swarm, AsyncExitStack() as held:
        ours, giver, taker, other = (machine(swarm, name) for name in ("ours", "giver", "taker", "other"))
        node = await swarm.add_node(WHOLE, home=ours, credits=True, max_sessions=4)
        giving = await swarm.add_node(WHOLE, home=giver, credits=True)
        here, there = (network.peer for network in swarm.networks)

        # A client of our machine is served by the giver's node, and signs for it.
        our_client = await swarm.add_client(ours, credits=True, only=(there,))
        await answered(our_client, swarm.model)
        own = CreditFile.of(ours / "credits", "home").read().book.peers[there]
        assert own.given >= 6 * len(PROMPT)
        assert own.taken == 0
        await until(lambda: there in node.server.credits.book.peers)
        await until(lambda: here in CreditFile.of(giver / "credits", "home").read().words)

        async def client(home):
            return await swarm.add_client(home, credits=True, only=(here,), resume_s=0.2)

        async def hold(client):
            await held.enter_async_context(client.session(str(swarm.model.path), tokens=64))

        # Somebody takes, more than a newcomer may.
        takes = await client(taker)
        await answered(takes, swarm.model)
        await until(lambda: node.server.credits.book.hosts)
        await hold(takes)
        await hold(takes)
        await hold(takes)  # half of the node was free
        with pytest.raises(Busy, match="serves those first who serve others"):
            await hold(takes)
        # By another name it is no newcomer.
        renamed = await client(other)
        with pytest.raises(Busy, match="serves those first who serve others"):
            await hold(renamed)
        gives = await client(giver)
        await hold(gives)
        assert giving.server.sessions == 0


async def test_what_was_given_and_taken_is_there_after_a_restart(tmp_path, checkpoint):
    async with memory_swarm(tmp_path / "home", checkpoint, []) as swarm:
        ours, giver = machine(swarm, "ours"), machine(swarm, "giver")
        await swarm.add_node(WHOLE, home=giver, credits=True)
        (there,) = (network.peer for network in swarm.networks)
        client = await swarm.add_client(ours, credits=True)
        said = await answered(client, swarm.model)
        await until(lambda: CreditFile.of(giver / "credits", "home").read().words)
    # The node has ended: what it had not written yet, it wrote then.
    theirs = CreditFile.of(giver / "credits", "home").read()
    mine = CreditFile.of(ours / "credits", "home").read()
    (word,) = theirs.words.values()
    assert word.units == mine.book.peers[there].given
    assert word.units >= 6 * (len(PROMPT) + len(said) - 1)
    (debt,) = theirs.book.hosts.values()
    assert debt.units == pytest.approx(word.units, abs=1 + 6)  # and perhaps a step behind the last token
