"""Files and batches over HTTP, as OpenAI's client asks for them."""

from __future__ import annotations

import json

import openai
import pytest
import trio

from shoal.gateway.access.keys import LOCAL, KeyLimits, create

from ..conftest import served, user
from ..test_openai import ask
from .stored import CHAT, batch_of, line, rows


def jsonl(*lines):
    return ("in.jsonl", b"".join(lines))


def finished(client, id):
    """Look at a batch until it has ended."""
    for _ in range(400):
        batch = client.batches.retrieve(id)
        if batch.status in ("completed", "failed", "cancelled", "expired"):
            return batch
        trio.from_thread.run(trio.sleep, 0.05)
    raise AssertionError(batch)


async def test_openais_client_uploads_creates_and_reads_a_batch(gateway):
    def use(client, base):
        good = {"messages": [user("hello")], "max_tokens": 4, **base}
        upload = client.files.create(
            file=jsonl(
                line("good", **good),
                b"\n",
                line("bad", **good | {"max_tokens": -1}),
                line("streamed", **good | {"stream": True}),
            ),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
        made = client.batches.create(
            input_file_id=upload.id,
            endpoint=CHAT,
            completion_window="24h",
            metadata={"a": "b"},
            output_expires_after={"anchor": "created_at", "seconds": 7200},
        )
        done = finished(client, made.id)
        kept = client.files.retrieve(done.output_file_id)
        output = client.files.content(done.output_file_id).text
        errors = client.files.content(done.error_file_id).text
        whole = client.chat.completions.create(**good)
        listed = [batch.id for batch in client.batches.list(limit=1)]
        names = {file.id: file.purpose for file in client.files.list()}
        again = client.files.content(upload.id).content
        return upload, made, done, output, errors, whole, listed, names, again, kept

    upload, made, done, output, errors, whole, listed, names, again, kept = await ask(gateway, use)
    assert (upload.purpose, upload.expires_at - upload.created_at) == ("batch", 3600)
    assert kept.expires_at - kept.created_at == 7200
    assert (made.status, done.status, done.metadata) == ("validating", "completed", {"a": "b"})
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (3, 1, 2)
    (answer,) = map(json.loads, output.splitlines())
    assert (answer["custom_id"], answer["error"]) == ("good", None)
    body = answer["response"]["body"]
    assert body["choices"][0]["message"]["content"] == whole.choices[0].message.content
    told = {one["custom_id"]: one["response"] for one in map(json.loads, errors.splitlines())}
    assert {name: response["body"]["error"]["param"] for name, response in told.items()} == {
        "bad": "max_tokens",
        "streamed": "stream",
    }
    assert listed == [made.id]
    purposes = {upload.id: "batch", done.output_file_id: "batch_output", done.error_file_id: "batch_output"}
    assert names == purposes
    assert again.count(b"\n") == 4
    assert gateway.gateway.limits.awaited == 0


async def test_a_batch_outlives_its_gateway(tmp_path, checkpoint):
    async with served(tmp_path, checkpoint) as gateway:

        def begin(client, base):
            asked = {"input": "hello", "max_output_tokens": 3} | base
            lines = [line(f"r{n}", "/v1/responses", **asked) for n in range(2)]
            lines.append(line("r2", "/v1/responses", store=None, **asked))
            upload = client.files.create(file=jsonl(*lines), purpose="batch")
            return client.batches.create(
                input_file_id=upload.id, endpoint="/v1/responses", completion_window="24h"
            ).id

        async with gateway.gateway.limits.admitted(LOCAL):  # somebody waits, so nothing of it begins
            id = await ask(gateway, begin)
    async with served(tmp_path, checkpoint) as gateway:
        done = await ask(gateway, lambda client, base: finished(client, id))
        assert (done.status, done.request_counts.completed) == ("completed", 3)
        assert rows(gateway.gateway.database) == 0  # its responses do not push out those of conversations


async def test_a_batch_can_be_cancelled_and_a_bad_file_fails_it(gateway):
    def use(client, base):
        good = line("a", messages=[user("a")], **base)
        upload = client.files.create(file=jsonl(good), purpose="batch")
        asked = {"input_file_id": upload.id, "endpoint": CHAT, "completion_window": "24h"}
        stopped = client.batches.cancel(client.batches.create(**asked).id)
        bad = client.files.create(file=jsonl(good, b"no\n"), purpose="batch")
        failed = client.batches.create(**asked | {"input_file_id": bad.id})
        client.files.delete(upload.id)
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(upload.id)
        return finished(client, stopped.id), finished(client, failed.id)

    async with gateway.gateway.limits.admitted(LOCAL):
        stopped, failed = await ask(gateway, use)
    assert stopped.status == "cancelled"
    assert (failed.status, failed.output_file_id) == ("failed", None)
    assert [(error.line, error.code) for error in failed.errors.data] == [(2, "invalid_json_line")]


async def test_another_keys_files_and_batches_are_404(gateway):
    path = gateway.gateway.database
    keys = [create(path, name, KeyLimits(), admin=False)[0] for name in ("ada", "bob")]
    gateway.gateway.keys.refresh()
    ada, bob = ({"authorization": f"Bearer {key}"} for key in keys)
    upload = {"data": {"purpose": "batch"}, "files": {"file": ("a", line("a"))}}
    file = (await gateway.http.post("/v1/files", headers=ada, **upload)).json()["id"]
    asked = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    batch = (await gateway.http.post("/v1/batches", json=asked, headers=ada)).json()["id"]
    for method, where in (
        ("GET", f"files/{file}"),
        ("GET", f"files/{file}/content"),
        ("DELETE", f"files/{file}"),
        ("GET", f"batches/{batch}"),
        ("POST", f"batches/{batch}/cancel"),
    ):
        answer = await gateway.http.request(method, f"/v1/{where}", headers=bob)
        assert (where, answer.status_code) == (where, 404)
    assert (await gateway.http.post("/v1/batches", json=asked, headers=bob)).status_code == 404
    for where in ("files", "batches"):
        assert (await gateway.http.get(f"/v1/{where}", headers=bob)).json()["data"] == []
        assert (await gateway.http.get(f"/v1/{where}", headers=ada)).json()["data"] != []


async def test_only_the_batches_of_the_page_are_counted(gateway, monkeypatch):
    for _ in range(3):
        batch_of(gateway.gateway.batches, [line("a")])
    counts_of, counted = gateway.gateway.batches.counts_of, []

    def noted(batches):
        counted.extend(batch.id for batch in batches)
        return counts_of(batches)

    monkeypatch.setattr(gateway.gateway.batches, "counts_of", noted)
    page = (await gateway.http.get("/v1/batches?limit=1")).json()
    assert ([one["id"] for one in page["data"]], page["has_more"]) == (counted, True)
    assert len(counted) == 1
