"""Uploads: forms, bounds, and whose turn it is."""

from __future__ import annotations

import errno

import pytest

from shoal.gateway.access.keys import KeyLimits, create
from shoal.gateway.access.limits import RequestLimiter
from shoal.gateway.errors import LimitReached
from shoal.gateway.stored import files as files_module
from shoal.gateway.stored.expiry import Keeping
from shoal.gateway.stored.file_routes import FileRoutes
from shoal.gateway.stored.files import FileStore

from ..conftest import kept_in, served
from .stored import CHAT, line

FILE = {"file": ("a.jsonl", b"x\n")}


@pytest.mark.parametrize(
    ("given", "status", "param"),
    [
        ({"data": {"purpose": "batch"}, "files": {"other": ("a", b"x")}}, 400, "file"),
        ({"data": {"purpose": "fine-tune"}, "files": FILE}, 400, "purpose"),
        ({"data": {"purpose": "batch"}, "files": {"file": ("a", b"")}}, 400, "file"),
        ({"data": {"purpose": "batch", "file": "text"}, "files": {"x": ("a", b"x")}}, 400, "file"),
        (
            {"data": {"purpose": "batch", "expires_after[seconds]": "3600"}, "files": FILE},
            400,
            "expires_after.anchor",
        ),
        (
            {
                "data": {
                    "purpose": "batch",
                    "expires_after[anchor]": "created_at",
                    "expires_after[seconds]": "60",
                },
                "files": FILE,
            },
            400,
            "expires_after.seconds",
        ),
        ({"data": {f"f{n}": "x" for n in range(20)}, "files": FILE}, 400, None),
        ({"json": {"purpose": "batch"}}, 415, None),
        ({"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data"}}, 400, None),
        ({"content": b"\x00junk", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, None),
    ],
)
async def test_a_form_that_is_no_upload_is_refused_by_its_field(shared, given, status, param):
    answer = await shared.http.post("/v1/files", **given)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


async def test_an_upload_may_have_a_name_that_is_no_text(gateway):
    form = (
        b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a+2AA-.jsonl"\r\n\r\nx\r\n--x--\r\n'
    )
    kind = "multipart/form-data; boundary=x; charset=utf-7"
    answer = await gateway.http.post("/v1/files", content=form, headers={"content-type": kind})
    assert (answer.status_code, answer.json().get("filename")) == (200, "a?.jsonl")


async def test_a_full_disk_refuses_an_upload(gateway, monkeypatch):
    async def full(self, data):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("starlette.datastructures.UploadFile.write", full)
    answer = await gateway.http.post("/v1/files", data={"purpose": "batch"}, files=FILE)
    assert answer.status_code == 503
    assert "no space left; check that there is room" in answer.json()["error"]["message"]


async def test_an_upload_is_bounded(gateway, monkeypatch):
    monkeypatch.setattr("shoal.gateway.stored.file_routes.MAX_FILE", 1000)
    monkeypatch.setattr("shoal.gateway.stored.file_routes.AROUND", 1000)
    upload = {"data": {"purpose": "batch"}, "files": {"file": ("a", b"x\n" * 2000)}}
    assert (await gateway.http.post("/v1/files", **upload)).status_code == 413
    monkeypatch.setattr(files_module, "MAX_LINES", 3)
    upload["files"] = {"file": ("a", b"x\n" * 4)}
    answer = await gateway.http.post("/v1/files", **upload)
    assert (answer.status_code, answer.json()["error"]["param"]) == (413, "file")
    assert (await gateway.http.get("/v1/files")).json()["data"] == []


async def test_an_upload_is_one_of_so_many_of_its_caller_and_of_all(tmp_path, monkeypatch):
    routes = FileRoutes(FileStore(kept_in(tmp_path), Keeping(30)), RequestLimiter())
    monkeypatch.setattr("shoal.gateway.stored.file_routes.UPLOADS", 3)
    with routes._under_way("a"), routes._under_way("a"):
        with pytest.raises(LimitReached, match="2 uploads of this key"), routes._under_way("a"):
            pass
        with (
            routes._under_way("b"),
            pytest.raises(LimitReached, match="0 uploads of this key are under way, and 3 of all"),
            routes._under_way("c"),
        ):
            pass
    with routes._under_way("a"):
        assert routes._uploads == {"a": 1}


async def test_what_is_stored_is_read_within_the_limits_of_its_key(gateway, monkeypatch):
    path = gateway.gateway.database
    key, _ = create(path, "ada", KeyLimits(concurrency=1), admin=False)
    gateway.gateway.keys.refresh()
    ada = {"authorization": f"Bearer {key}"}
    upload = {"data": {"purpose": "batch"}, "files": {"file": ("a", line("a"))}}
    file = (await gateway.http.post("/v1/files", headers=ada, **upload)).json()["id"]
    asked = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    ways = [
        ("GET", "files"),
        ("GET", f"files/{file}"),
        ("GET", f"files/{file}/content"),
        ("POST", "batches"),
        ("GET", "batches"),
        ("GET", "batches/b"),
        ("POST", "batches/b/cancel"),
        ("GET", "responses/r"),
        ("GET", "responses/r/input_items"),
        ("DELETE", "responses/r"),
        ("DELETE", f"files/{file}"),
    ]
    async with gateway.gateway.limits.admitted(gateway.gateway.keys.find(key)):
        for method, where in ways:
            answer = await gateway.http.request(method, f"/v1/{where}", headers=ada, json=asked)
            assert (where, answer.status_code) == (where, 429)
    assert (await gateway.http.get(f"/v1/files/{file}/content", headers=ada)).content == line("a")


async def test_a_gateway_that_keeps_nothing_takes_no_uploads(tmp_path, checkpoint):
    async with served(tmp_path, checkpoint, keeping=Keeping(0)) as gateway:
        answer = await gateway.http.post("/v1/files", data={"purpose": "batch"}, files=FILE)
        asked = {"input_file_id": "x", "endpoint": CHAT, "completion_window": "24h"}
        for refused in (answer, await gateway.http.post("/v1/batches", json=asked)):
            assert refused.status_code == 403
            assert "store_days" in refused.json()["error"]["message"]
