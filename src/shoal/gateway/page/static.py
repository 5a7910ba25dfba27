"""The page's files, as they were built: read once and served from memory, so that no path leads elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent / "built"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
"""What the page is made of; other files are not served."""

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",  # data: for the QR code
        "connect-src 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    ]
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
FOR_EVER = "public, max-age=31536000, immutable"
"""For what has its hash in its name."""
ASK_AGAIN = "no-cache"

LEFT_OUT = b"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Shoal</title></head><body><h1>Shoal's gateway is here, its page is not</h1>
<p>The page was left out when Shoal was installed, because npm's registry could not be reached.
The API works without it. To build the page, in the folder of the sources:</p>
<pre>.venv/bin/python hatch_build.py page</pre>
<p>Then start the gateway again.</p></body></html>
"""


@dataclass(frozen=True, slots=True)
class File:
    """One file of the page, ready to be sent."""

    body: bytes
    kind: str
    cached: str

    @property
    def tag(self) -> str:
        return f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'


class StaticPage:
    """The built page, or a plain one that says that it was left out."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._files = read_page(folder)

    def __contains__(self, path: str) -> bool:
        """Whether a request's path is one of the page's files: those need no key."""
        return path in self._files

    def routes(self) -> list[Route]:
        """One route for each file, for GET and HEAD."""
        return [Route(path, _serve(file)) for path, file in self._files.items()]


def read_page(folder: Path) -> dict[str, File]:
    """The page's files by the path of the request."""
    if not (folder / "index.html").is_file():
        return {"/": File(LEFT_OUT, KINDS[".html"], ASK_AGAIN)}
    files = {
        f"/{path.relative_to(folder).as_posix()}": File(
            path.read_bytes(),
            KINDS[path.suffix],
            FOR_EVER if path.parent.name == "assets" else ASK_AGAIN,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in KINDS
    }
    files["/"] = files.pop("/index.html")
    return files


def _serve(file: File) -> Callable[[Request], Awaitable[Response]]:
    headers = HEADERS | {"cache-control": file.cached, "etag": file.tag}

    async def serve(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        if file.tag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(file.body, media_type=file.kind, headers=headers)

    return serve
