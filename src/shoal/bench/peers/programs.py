"""Other programs as processes of ours: started, spoken to over HTTP, ended with the block."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import trio

from shoal import leash, process_environ
from shoal.errors import DeadlineExceeded, ShoalError

START_WITHIN_S = 180.0
END_WITHIN_S = 5.0
ANSWER_WITHIN_S = 300.0
"""The longest that one measurement of another program may take."""
INSTALL_WITHIN_S = 3600.0
HOST = "127.0.0.1"
INSTALLED = "installed"
"""The file of a virtual environment that says what it was made for."""


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with socket.socket() as opened:
        opened.bind((HOST, 0))
        return int(opened.getsockname()[1])


async def output_of(command: Sequence[str | Path], within_s: float = ANSWER_WITHIN_S) -> str:
    """What a program that ends by itself wrote on stdout.

    Raises:
        ShoalError: it failed; the error ends with the last that it said.
        DeadlineExceeded: it took longer than ``within_s``.
    """
    words = [str(word) for word in command]
    with trio.move_on_after(within_s):
        ended = await trio.run_process(
            words,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=process_environ.child_environ(),
        )
        if ended.returncode:
            raise ShoalError(
                f"{Path(words[0]).name} failed: {_last(ended.stderr)}",
                check=f"run it by itself: {' '.join(words)}",
            )
        return ended.stdout.decode(errors="replace")
    raise DeadlineExceeded(
        f"{Path(words[0]).name} took longer than {within_s:.0f} s",
        check=f"run it by itself: {' '.join(words)}",
    )


@asynccontextmanager
async def running_program(
    command: Sequence[str | Path], environ: Mapping[str, str], port: int, log: Path
) -> AsyncGenerator[trio.Process]:
    """Run a program that listens on ``port`` until the block ends.

    Raises:
        ShoalError: it ended before it listened.
        DeadlineExceeded: it did not listen in time.
    """
    with log.open("wb") as said:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-P", leash.__file__, *map(str, command)],
            stdin=subprocess.PIPE,  # by which the leash knows that we live
            stdout=said,
            stderr=said,
            env=process_environ.child_environ(**environ),
            process_group=0,
        )
    try:
        await _listens(process, port, log)
        yield process
    finally:
        with trio.CancelScope(shield=True):
            await _end(process)


async def _listens(process: trio.Process, port: int, log: Path) -> None:
    with trio.move_on_after(START_WITHIN_S):
        while process.poll() is None:
            with suppress(OSError):
                await (await trio.open_tcp_stream(HOST, port)).aclose()
                return
            await trio.sleep(0.1)
        raise ShoalError(f"{log.stem} ended: {_last(await trio.Path(log).read_bytes())}", check=f"read {log}")
    raise DeadlineExceeded(f"{log.stem} did not answer within {START_WITHIN_S:.0f} s", check=f"read {log}")


async def _end(process: trio.Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with trio.move_on_after(END_WITHIN_S):
        await process.wait()
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _last(said: bytes) -> str:
    return said.decode(errors="replace").strip()[-400:] or "it said nothing"


def is_made(folder: Path) -> bool:
    """Whether :func:`make_venv` made what is in a folder."""
    return (folder / INSTALLED).exists()


async def make_venv(folder: Path, requirement: str) -> None:
    """A virtual environment with ``requirement``, and nothing of ours, if it is not there.

    Raises:
        ShoalError: it cannot be installed.
    """
    done = folder / INSTALLED
    if done.exists() and done.read_text() == requirement:
        return
    await output_of([sys.executable, "-m", "venv", "--clear", folder], INSTALL_WITHIN_S)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", requirement]
    await output_of(pip, INSTALL_WITHIN_S)
    done.write_text(requirement)


def package_version(packages: Path, requirement: str) -> str:
    """Name and version of the package that was installed for ``requirement``.

    Args:
        packages: a folder of installed packages.
    """
    name = requirement.partition("==")[0]
    found = next(iter(distributions(name=name, path=[str(packages)])), None)
    return f"{name} of unknown version" if found is None else f"{name} {found.version}"


@dataclass(frozen=True, slots=True)
class Streamed:
    """One streamed answer."""

    tokens: int
    first_s: float
    """From the request to the first token."""
    total_s: float
    began: float = 0.0
    """When it was asked for, by ``time.perf_counter``."""

    @property
    def decode_rate(self) -> float:
        """Tokens in a second after the first."""
        return (self.tokens - 1) / (self.total_s - self.first_s)


HasToken = Callable[[Mapping[str, Any]], bool]


async def ask(port: int, path: str, body: Mapping[str, Any], has_token: HasToken | None = None) -> Streamed:
    """Ask for a stream of server-sent events, or of lines of JSON, one for each token.

    Args:
        has_token: whether an event carries a token; by default in llama-server's form or in that of chat
            completions.

    Raises:
        ShoalError: it is refused, breaks off, or has fewer than two tokens.
    """
    run = partial(_ask, port, path, body, has_token or _has_token)
    return await trio.to_thread.run_sync(run, abandon_on_cancel=True)


def _ask(port: int, path: str, body: Mapping[str, Any], has_token: HasToken) -> Streamed:
    began = time.perf_counter()
    times: list[float] = []
    connection = http.client.HTTPConnection(HOST, port, timeout=ANSWER_WITHIN_S)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise ShoalError(f"{path} answers {response.status}: {_last(response.read())}")
        for line in response:
            event = line.removeprefix(b"data: ")
            if event.startswith(b"{") and has_token(json.loads(event)):
                times.append(time.perf_counter() - began)
    except (OSError, http.client.HTTPException) as error:
        raise ShoalError(f"{path} broke off: {error}") from error
    finally:
        connection.close()
    if len(times) < 2:
        raise ShoalError(f"{path} gave {len(times)} tokens")
    return Streamed(len(times), times[0], times[-1], began)


def _has_token(event: Mapping[str, Any]) -> bool:
    """Whether an event carries a token, in llama-server's form or in that of chat completions."""
    if "choices" not in event:
        return bool(event.get("content")) or not event.get("stop", True)
    # Empty ones tell of a prompt's progress.
    return bool(event["choices"][0]["delta"].get("content"))


async def ask_together(port: int, path: str, bodies: Sequence[Mapping[str, Any]], unseen: int = 0) -> float:
    """Tokens in a second over several requests that are made at once. Raises as :func:`ask`.

    Args:
        unseen: tokens that each answer has beside those that are streamed.
    """
    answers: list[Streamed] = []

    async def one(body: Mapping[str, Any]) -> None:
        answers.append(await ask(port, path, body))

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for body in bodies:
            nursery.start_soon(one, body)
    return sum(answer.tokens + unseen for answer in answers) / (time.perf_counter() - began)
