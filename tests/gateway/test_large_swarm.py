"""A gateway of a large swarm: it knows one peer of a model, and looks the others up to answer over them."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import trio

from shoal.gateway.app import Options, open_gateway
from shoal.gateway.database.opening import database_at
from shoal.gateway.serve import serve
from shoal.swarm.membership import create
from shoal.swarm.views.rules import ViewRules
from shoal.testing.swarm import memory_swarm
from shoal.types import Span
from tests.one_process import KERNELS

SPANS = [Span(0, 2), Span(2, 4), Span(4, 6)]


async def test_a_gateway_looks_up_who_serves_its_models_and_answers_over_them(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = ViewRules(partial_from=3, whole_below=2, view_peers=8, drawn_peers=8, entry_peers=1)
    monkeypatch.setattr("shoal.swarm.member.ViewRules", lambda: rules)
    options = KERNELS | {"announce_s": 0.5, "expiry_s": 3.0}
    async with memory_swarm(tmp_path / "home", checkpoint, SPANS, **options) as swarm:
        client, digest = swarm.client, swarm.model.digest
        member = client.member
        assert member.size.partial
        assert not member.size.knows(digest)
        assert len(list(member.directory.serving(digest, member.now()))) == 1
        settings = Options(
            str(checkpoint), database_at("", tmp_path / "gateway.db"), "home", lambda: create("home"), list
        )
        async with open_gateway(client, settings) as gateway, trio.open_nursery() as nursery:
            url = await nursery.start(serve, gateway.app, "127.0.0.1", 0)
            async with httpx.AsyncClient(base_url=url, timeout=30) as http:
                body = {"model": checkpoint.name, "prompt": "hello", "max_tokens": 4, "temperature": 0}
                with trio.fail_after(20):
                    answer = await http.post("/v1/completions", json=body)
                    assert answer.status_code == 200, answer.text
                    assert (await http.get("/health")).json()["models"] == [checkpoint.name]
                metrics = (await http.get("/metrics")).text
            nursery.cancel_scope.cancel()
        assert member.size.knows(digest)
        assert len(list(member.directory.serving(digest, member.now()))) == 3
        assert "shoal_swarm_peers 3" in metrics
