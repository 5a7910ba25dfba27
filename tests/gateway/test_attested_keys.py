"""A key that is answered by attested peers alone, at a gateway of a swarm that has some or none."""

from __future__ import annotations

import sqlite3
import time
from datetime import UTC, datetime, timedelta

from shoal.client.ring import route_finder
from shoal.gateway.access.database import open_database
from shoal.gateway.access.keys import KeyLimits, create, list_keys
from shoal.testing.tee.snp import FakeChip, allowed_chip
from shoal.testing.tee.source import attesting_on
from shoal.trust.attestation.measurements import Measurements
from shoal.trust.attestation.verify import Roots
from shoal.types import Span

from .conftest import served


async def test_a_key_for_attested_peers_alone_is_answered_by_those(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(route_finder, "HEAR_WITHIN_S", 0.2)
    key, _ = create(tmp_path / "gateway.db", "strict", KeyLimits(), admin=False, attested_only=True)
    other, _ = create(tmp_path / "gateway.db", "other", KeyLimits(), admin=False)
    chip = FakeChip(datetime.fromtimestamp(time.time(), UTC) - timedelta(days=1))
    async with served(tmp_path, checkpoint, [Span(0, 6)]) as gateway:
        client = gateway.swarm.client
        client.member.clock.wall = time.time
        strict, plain = ({"authorization": f"Bearer {one}"} for one in (key, other))
        refused = await gateway.post("/v1/completions", headers=strict, prompt="hello")
        assert refused.status_code == 400
        assert "measurements.toml is not there" in refused.json()["error"]["message"]

        client.rings.attest_by(Measurements(snp=(allowed_chip(),)), Roots(amd=chip.roots))
        refused = await gateway.post("/v1/completions", headers=strict, prompt="hello")
        assert refused.status_code == 503
        assert "list of measurements" in refused.json()["error"]["message"]
        assert (await gateway.post("/v1/completions", headers=plain, prompt="hello")).status_code == 200

        node = await gateway.swarm.add_node(Span(0, 6), attesting=attesting_on(chip))
        while len(client.announcements()) < 2:
            await client.member.wait_changed()
        answered = await gateway.post("/v1/completions", headers=strict, prompt="hello")
        assert answered.status_code == 200
        (hop,) = gateway.gateway.records.shown()[0]["route"]
        assert hop["peer"] == node.member.network.peer
        assert hop["attested"].startswith("snp: a test")
        assert gateway.gateway.records.shown()[0]["protection"]["level"] == "attested"

        chats = {"plain": plain, "dialled": plain | {"x-shoal-protect": "attested"}}
        for name, headers in (*chats.items(), *chats.items()):  # no session of one way is kept for the other
            answered = await gateway.chat(headers=headers)
            assert answered.status_code == 200
            (hop,) = gateway.gateway.records.shown()[0]["route"]
            assert ("attested" in hop) is (name == "dialled")
        infer = await gateway.http.post("/v2/models/any/infer", headers=strict, json={"inputs": []})
        assert "graphs" in infer.text


def test_a_database_of_an_earlier_version_has_no_such_keys(tmp_path):
    path = tmp_path / "gateway.db"
    create(path, "old", KeyLimits(), admin=False)
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE keys DROP COLUMN attested_only")
    with open_database(path):
        pass
    assert [record.caller.attested_only for record in list_keys(path)] == [False]
