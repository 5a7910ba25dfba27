"""The page's files over HTTP: what comes, with which headers, and what never comes."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from shoal.gateway.page.static import StaticPage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    page = tmp_path / "page"
    (page / "assets").mkdir(parents=True)
    (page / "index.html").write_text("<!doctype html>the page")
    (page / "assets/index-abc.js").write_text("let a")
    (page / "assets/index-abc.css").write_text("a{}")
    (page / "favicon.svg").write_text("<svg/>")
    (page / "sources.sha256").write_text("what it was built from")
    (tmp_path / "secret.html").write_text("a secret")
    return page


def client(folder: Path) -> TestClient:
    return TestClient(Starlette(routes=StaticPage(folder).routes()))


def test_the_page_comes_at_the_root_and_a_browser_asks_for_it_anew(folder: Path) -> None:
    answer = client(folder).get("/")
    assert answer.text == "<!doctype html>the page"
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/assets/index-abc.js", "text/javascript; charset=utf-8"),
        ("/assets/index-abc.css", "text/css; charset=utf-8"),
    ],
)
def test_what_has_its_hash_in_its_name_is_kept_for_ever(folder: Path, path: str, kind: str) -> None:
    answer = client(folder).get(path)
    assert answer.headers["content-type"] == kind
    assert "immutable" in answer.headers["cache-control"]


def test_a_browser_that_has_the_page_is_not_sent_it_again(folder: Path) -> None:
    with client(folder) as browser:
        tag = browser.get("/").headers["etag"]
        again = browser.get("/", headers={"if-none-match": f'"other", W/{tag}'})
        assert (again.status_code, again.content) == (304, b"")
        (folder / "index.html").write_text("another page")
    changed = client(folder).get("/", headers={"if-none-match": tag})
    assert (changed.status_code, changed.text) == (200, "another page")


def test_no_script_style_or_frame_from_elsewhere_is_allowed(folder: Path) -> None:
    headers = client(folder).get("/").headers
    policy = headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"} <= set(
        policy
    )
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.html",
        "/%2e%2e/secret.html",
        "/assets/../../secret.html",
        "/assets/%2e%2e%2f%2e%2e%2fsecret.html",
        "//etc/passwd",
        "/assets/..%5c..%5csecret.html",
        "/assets/",
        "/sources.sha256",
        "/index-abc.js%00.html",
    ],
)
def test_nothing_but_the_page_s_own_files_comes(folder: Path, path: str) -> None:
    assert client(folder).get(path).status_code == 404


def test_it_knows_which_paths_are_its_own(folder: Path) -> None:
    page = StaticPage(folder)
    assert all(path in page for path in ("/", "/favicon.svg", "/assets/index-abc.js"))
    assert not any(path in page for path in ("/api/swarm", "/v1/models", "/assets", "/sources.sha256"))


def test_files_are_only_read(folder: Path) -> None:
    assert client(folder).post("/").status_code == 405


def test_without_the_page_a_plain_one_says_so_and_what_to_do(tmp_path: Path) -> None:
    answer = client(tmp_path / "nowhere").get("/")
    assert answer.status_code == 200
    assert "hatch_build.py page" in answer.text
    assert "content-security-policy" in answer.headers
