"""The rest of a file over HTTP, by a request for the range of bytes that is missing."""

from __future__ import annotations

import time
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from shoal.errors import DISK_FULL, BadWeights

SILENT_S = 60.0
"""The longest without another byte."""
TRIES = 5
"""One after another of which nothing comes."""
PAUSE_S = 1.0
"""Before the next."""
CHUNK = 1 << 20


class Unreadable(Exception):
    """The file cannot be read there; its text says why."""


def append_rest(url: str, out: BinaryIO, begin: int, size: int, told: Callable[[int], None]) -> None:
    """Append what is missing of a file, connecting again where a connection breaks off.

    Args:
        out: opened to append; holds the first ``begin`` bytes. Emptied where the server sends no ranges.
        size: bytes of the whole; more is not read.
        told: called with how many there are.

    Raises:
        Unreadable: it is not on the web, the server refuses, or nothing comes of several tries.
        BadWeights: the server has a file of another size.
        OSError: the disk is full.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise Unreadable(f"{url} is no address of the web")
    failed = 0
    while begin < size:
        came, why = begin, "it is shorter than it should be"
        try:
            begin = _request(url, out, begin, size, told)
        except HTTPError as error:
            error.close()
            if error.code == 416:  # what is there ends behind our bytes: it is another file
                begin = _emptied(out)
            elif error.code < 500 and error.code not in (408, 429):
                raise Unreadable(str(error)) from error
            why = str(error)
        except (OSError, HTTPException) as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            begin, why = out.tell(), str(error) or type(error).__name__
        failed = 0 if begin > came else failed + 1
        if failed == TRIES:
            raise Unreadable(why)
        if begin < size:
            time.sleep(PAUSE_S)


def _request(url: str, out: BinaryIO, begin: int, size: int, told: Callable[[int], None]) -> int:
    """Append what one request brings; returns how many bytes there are then."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "shoal"}
    if begin:
        headers["Range"] = f"bytes={begin}-"
    with urlopen(Request(url, headers=headers), timeout=SILENT_S) as response:
        ranged = response.status == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {begin}-"
        )
        if begin and not ranged:
            begin = _emptied(out)
        _check_size(response, begin, size)
        told(begin)
        while begin < size and (chunk := response.read(min(CHUNK, size - begin))):
            out.write(chunk)
            out.flush()
            begin += len(chunk)
            told(begin)
    return begin


def _check_size(response: HTTPResponse, begin: int, size: int) -> None:
    """Raises BadWeights where the server says that the file has another size."""
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and begin + int(length) != size:
        raise BadWeights(
            f"{response.url} has {begin + int(length)} bytes, and should have {size}",
            check="check which index pip uses (pip config list), and whether a proxy changes files",
        )


def _emptied(out: BinaryIO) -> int:
    """Take away what is there; returns how many bytes are left."""
    out.seek(0)
    return out.truncate()
