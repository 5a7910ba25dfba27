"""A key that is answered by attested peers alone, at a gateway of a swarm that has some or none."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from shoal.client.ring import route_finder
from shoal.gateway.access.keys import KeyLimits, create
from shoal.testing.encoders import write_encoder
from shoal.testing.seq2seq import write_speech_to_text
from shoal.testing.tee.snp import FakeChip, allowed_chip
from shoal.testing.tee.source import attesting_on
from shoal.trust.attestation.measurements import Measurements
from shoal.trust.attestation.verify import Roots
from shoal.types import Span
from tests.client.test_transcribe import SHORT, sound, wav
from tests.one_process import KERNELS

from .conftest import MODULES, kept_in, served, user


async def test_a_key_for_attested_peers_alone_is_answered_by_those(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(route_finder, "HEAR_WITHIN_S", 0.2)
    key, _ = create(kept_in(tmp_path), "strict", KeyLimits(), admin=False, attested_only=True)
    other, _ = create(kept_in(tmp_path), "other", KeyLimits(), admin=False)
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

        node = await gateway.swarm.add_node(Span(0, 6), attesting=attesting_on(chip), **KERNELS)
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


TEXT = {
    "/v1/chat/completions": {"messages": [user("hello")]},
    "/v1/completions": {"prompt": "hello"},
    "/v1/responses": {"input": "hello", "max_output_tokens": 4, "store": False},
    "/v1/messages": {"messages": [user("hello")]},
    "/api/chat": {"messages": [user("hello")], "stream": False, "options": {"num_predict": 4}},
    "/api/generate": {"prompt": "hello", "stream": False, "options": {"num_predict": 4}},
}
VECTORS = {
    "/v1/embeddings": {"input": "hello"},
    "/api/embed": {"input": "hello"},
    "/api/embeddings": {"prompt": "hello"},
}
SOUND = ("/v1/audio/transcriptions", "/v1/audio/translations")
AUDITED = {"x-shoal-protect": "audited"}


class Strict:
    """A gateway with a key for attested peers alone; a node that shows nothing serves the whole model."""

    def __init__(self, gateway, key, audited, nodes):
        self.gateway = gateway
        self.nodes = nodes
        self.headers = {"authorization": f"Bearer {key}"}
        self.audited = {"authorization": f"Bearer {audited}"}
        self._chip = FakeChip(datetime.fromtimestamp(time.time(), UTC) - timedelta(days=1))
        client = gateway.swarm.client
        client.member.clock.wall = time.time
        client.rings.attest_by(Measurements(snp=(allowed_chip(),)), Roots(amd=self._chip.roots))

    async def add_attested(self, span):
        client, known = self.gateway.swarm.client, len(self.gateway.swarm.nodes)
        await self.gateway.swarm.add_node(span, attesting=attesting_on(self._chip), **self.nodes)
        while len(client.announcements()) < known + 1:
            await client.member.wait_changed()

    async def transcribe(self, path, headers, **fields):
        files, data = {"file": ("a.wav", wav(sound(1)))}, {"model": self.gateway.model} | fields
        return await self.gateway.http.post(path, data=data, files=files, headers=headers)

    def assert_attested(self):
        route = self.gateway.gateway.records.shown()[0]["route"]
        assert route
        assert all(hop["attested"].startswith("snp") for hop in route)


@asynccontextmanager
async def strict(home, folder, blocks, monkeypatch, nodes=MODULES):
    monkeypatch.setattr(route_finder, "HEAR_WITHIN_S", 0.05)
    key, _ = create(kept_in(home), "strict", KeyLimits(), admin=False, attested_only=True)
    audited, _ = create(kept_in(home), "audited", KeyLimits(), admin=False, protect="audited")
    async with served(home, folder, [Span(0, blocks)], nodes=nodes) as gateway:
        yield Strict(gateway, key, audited, nodes)


async def test_no_route_of_text_goes_over_other_peers(tmp_path, checkpoint, monkeypatch):
    async with strict(tmp_path, checkpoint, 6, monkeypatch, KERNELS) as found:
        for path, body in TEXT.items():
            answer = await found.gateway.post(path, found.headers, **body)
            assert (answer.status_code, "list of measurements" in answer.text) == (503, True), path
        await found.add_attested(Span(0, 6))
        for path, body in TEXT.items():
            answer = await found.gateway.post(path, found.headers, **body)
            assert answer.status_code == 200, answer.text
            found.assert_attested()


async def test_no_route_of_vectors_goes_over_other_peers(tmp_path, monkeypatch):
    async with strict(tmp_path, write_encoder(tmp_path / "bert"), 6, monkeypatch) as found:
        dialled = [(found.headers, {}), (found.audited | {"x-shoal-protect": "attested"}, {})]
        dialled.append((found.audited, {"protect": "attested"}))
        for path, body in VECTORS.items():
            for headers, said in dialled:
                answer = await found.gateway.post(path, headers, **body, **said)
                assert (answer.status_code, "list of measurements" in answer.text) == (503, True), path
        await found.add_attested(Span(0, 6))
        for path, body in VECTORS.items():
            for headers, said in dialled:
                answer = await found.gateway.post(path, headers, **body, **said)
                assert answer.status_code == 200, answer.text
                found.assert_attested()


async def test_a_recording_is_neither_heard_nor_written_down_by_other_peers(tmp_path, monkeypatch):
    async with strict(tmp_path, write_speech_to_text(tmp_path / "whisper", **SHORT), 8, monkeypatch) as found:
        for span in (Span(4, 8), Span(0, 4)):  # those that decode, and those that hear
            for path in SOUND:
                answer = await found.transcribe(path, found.headers, language="en")
                assert (answer.status_code, "list of measurements" in answer.text) == (503, True), path
            await found.add_attested(span)
        for path in SOUND:
            for headers, said in ((found.headers, {}), (found.audited, {"protect": "attested"})):
                answer = await found.transcribe(path, headers, language="en", **said)
                assert answer.status_code == 200, answer.text
                found.assert_attested()


async def test_who_asks_for_audits_where_there_are_none_is_told_so(tmp_path, monkeypatch):
    async with strict(tmp_path, write_encoder(tmp_path / "bert"), 6, monkeypatch) as found:
        key, gateway = found.audited, found.gateway
        for path, body in VECTORS.items():
            refused = await gateway.post(path, key | AUDITED, **body)
            assert (refused.status_code, "is not audited" in refused.text) == (400, True), path
            refused = await gateway.post(path, key, **body, protect="audited")
            assert (refused.status_code, "'fast' or 'attested'" in refused.text) == (400, True), path
            assert (await gateway.post(path, key, **body)).status_code == 200  # where only the key says so
            answer = await gateway.post(path, key | AUDITED, **body, protect="fast")
            assert answer.status_code == 200  # the body comes before the header
        for path in SOUND:
            refused = await found.transcribe(path, key | AUDITED)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-shoal-protect")
            assert (await found.transcribe(path, key, protect="audited")).status_code == 400
        refused = await gateway.http.post("/v2/models/a/infer", headers=key | AUDITED, json={"inputs": []})
        assert (refused.status_code, "is not audited" in refused.json()["error"]) == (400, True)
