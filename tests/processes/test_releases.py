"""This release beside the one before it: nobody has to upgrade on the same day.

The release before comes out of this repository's history; where a checkout has none, these tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from io import BytesIO
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
import torch
import trio
from anyio.from_thread import start_blocking_portal
from transformers import AutoModelForCausalLM

from shoal import config
from shoal.client.connect import open_swarm
from shoal.local.processes import Process, address_of, ended_with_us, free_ports, on_this_machine, start
from shoal.swarm import membership
from shoal.swarm.invite import write_invite
from shoal.swarm.membership import Membership
from shoal.types import Span

pytestmark = pytest.mark.swarm

BEFORE = "861b8d6f4630"
"""The last commit of the release before, which speaks version 7 of the protocol alone."""
REPOSITORY = Path(__file__).parents[2]
NOT_IN_GIT = ("net/vendored", "gateway/page/built")
"""What setting up makes beside the sources."""
HALVES = (Span(0, 3), Span(3, 6))
PROMPT = list(range(5, 25))
COUNT = 12

ASK = """
import json, sys
import shoal
asked = json.load(sys.stdin)
answers = []
for only in asked["routes"]:
    with shoal.connect(invite=asked["invite"], host="127.0.0.1", mdns=False, only=tuple(only)) as swarm:
        with swarm.session(asked["model"], tokens=64) as session:
            tokens, step = [], asked["prompt"]
            for _ in range(asked["count"]):
                step = [int(session.step(step)[-1].argmax())]
                tokens += step
        answers.append(tokens)
print(json.dumps(answers))
"""
"""A client of either release, that asks once over each route."""


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release before, to be found before this one."""
    found = subprocess.run(
        ["git", "archive", BEFORE, "src"], cwd=REPOSITORY, capture_output=True, check=False
    )
    if found.returncode:
        pytest.skip(f"this checkout does not have {BEFORE}: {found.stderr.decode().strip()}")
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=BytesIO(found.stdout)) as packed:
        packed.extractall(folder, filter="data")
    for made in NOT_IN_GIT:
        shutil.copytree(REPOSITORY / "src/shoal" / made, folder / "src/shoal" / made)
    return folder / "src"


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> list[int]:
    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    out = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=COUNT, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return out[0, len(PROMPT) :].tolist()


class Mixed:
    """Nodes of both releases; ``before`` says of each whether it is of the one before."""

    def __init__(self, home: Path, checkpoint: Path, source: Path) -> None:
        settings = config.load(
            {"model": str(checkpoint), "mdns": False, "threads": 1, "format": "fp32", "kernels": "torch"},
            {"SHOAL_HOME": str(home)},
        )
        self.inside = on_this_machine(settings, "demo")
        self.members: Membership = membership.create("demo")
        self.model = str(checkpoint)
        self._home = home
        self._source = source
        self._ports = iter(free_ports("127.0.0.1", 8))

    def environ(self, old: bool, home: Path) -> dict[str, str]:
        path = {"PYTHONPATH": str(self._source)} if old else {}
        return {**os.environ, **path, "SHOAL_HOME": str(home), "SHOAL_HOST": "127.0.0.1", "SHOAL_MDNS": "0"}

    async def start(self, old: bool, span: Span, processes: list[Process]) -> tuple[Process, dict[str, Any]]:
        """Boot a node, and join it to those that are there."""
        home, port = self._home / f"node{len(processes)}", next(self._ports)
        address = address_of(home, "127.0.0.1", port)
        own = replace(self.inside, port=port, bootstrap=self.members.bootstrap)
        with pytest.MonkeyPatch.context() as patch:
            if old:
                patch.setenv("PYTHONPATH", str(self._source))
            process = await start(own, self.members, span, home, processes)
        self.members = replace(self.members, bootstrap=(*self.members.bootstrap, address))
        return process, await process.event("serving")

    def ask(self, old: bool, routes: list[list[str]]) -> list[Any]:
        """What a client gets over each route."""
        with TemporaryDirectory(dir=self._home) as home:
            done = subprocess.run(
                [sys.executable, "-c", ASK],
                input=json.dumps(
                    {
                        "invite": write_invite(self.members),
                        "routes": routes,
                        "model": self.model,
                        "prompt": PROMPT,
                        "count": COUNT,
                    }
                ),
                env=self.environ(old, Path(home)),
                cwd=home,
                text=True,
                capture_output=True,
                timeout=180,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

    @contextmanager
    def gateway(self, old: bool) -> Generator[str]:
        """The address of a gateway."""
        home = self._home / f"gateway{old:d}"
        membership.save(home / "swarms", self.members)
        command = [sys.executable, "-m", "shoal.cli", "gateway", "--gateway-port", "0", "--json"]
        running = subprocess.Popen(
            [*command, "--model", self.model, "--swarm", "demo", "--end-with-stdin"],
            env=self.environ(old, home),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert running.stdout is not None
            yield next(
                said["url"] for line in running.stdout if (said := json.loads(line)).get("event") == "gateway"
            )
        finally:
            running.kill()
            running.communicate()


@asynccontextmanager
async def both(mixed: Mixed) -> AsyncGenerator[dict[tuple[bool, int], str]]:
    """A node of each release for each half of the model: peers by (of the one before?, half)."""
    async with ended_with_us() as processes:
        peers: dict[tuple[bool, int], str] = {}
        for old, half in product((True, False), (0, 1)):
            _, said = await mixed.start(old, HALVES[half], processes)
            peers[old, half] = said["peer"]
        yield peers


def served(url: str) -> str:
    """The model that a gateway lists, once it has heard of its nodes."""
    until = time.monotonic() + 60
    while not (models := httpx.get(f"{url}/v1/models", timeout=60).json()["data"]):
        assert time.monotonic() < until
        time.sleep(0.2)
    return models[0]["id"]


def test_every_mixture_of_client_gateway_and_hops_gives_the_same_tokens(
    tmp_path: Path, checkpoint: Path, before: Path, expected: list[int]
) -> None:
    mixed = Mixed(tmp_path, checkpoint, before)
    with start_blocking_portal("trio") as portal, portal.wrap_async_context_manager(both(mixed)) as peers:
        routes = [[peers[first, 0], peers[second, 1]] for first, second in product((True, False), repeat=2)]
        for old in (True, False):
            assert mixed.ask(old, routes) == [expected] * len(routes)
            with mixed.gateway(old) as url:
                body = {"model": served(url), "prompt": PROMPT, "max_tokens": COUNT, "temperature": 0}
                answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()
                assert answer.get("usage", {}).get("completion_tokens") == COUNT, answer


async def test_a_session_survives_while_its_hops_are_upgraded_one_after_another(
    tmp_path: Path, checkpoint: Path, before: Path, expected: list[int]
) -> None:
    mixed = Mixed(tmp_path, checkpoint, before)
    async with ended_with_us() as processes:
        outdated = [(await mixed.start(True, span, processes))[0] for span in HALVES]
        settings = config.load(
            {"host": "127.0.0.1", "mdns": False, "bootstrap": list(mixed.members.bootstrap)},
            {"SHOAL_HOME": str(tmp_path / "client")},
        )
        async with (
            open_swarm(settings, mixed.members) as client,
            client.session(mixed.model, tokens=64) as session,
        ):
            chosen = [int((await session.step(PROMPT))[-1].argmax())]
            for span, process in zip(HALVES, outdated, strict=True):
                _, said = await mixed.start(False, span, processes)
                with trio.fail_after(30):
                    while said["peer"] not in {a.peer for a in client.announcements()}:  # noqa: ASYNC110
                        await trio.sleep(0.1)
                process.signal(signal.SIGTERM)
                await process.process.wait()
                for _ in range(3):
                    chosen.append(int((await session.step(chosen[-1:]))[-1].argmax()))
            assert chosen == expected[: len(chosen)]
            assert len(session.reroutes) >= 2
