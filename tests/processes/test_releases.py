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
from anyio.from_thread import BlockingPortal, start_blocking_portal
from transformers import AutoModelForCausalLM, AutoTokenizer

from shoal import config
from shoal.client.connect import open_swarm
from shoal.client.session import Session
from shoal.client.swarm import Swarm
from shoal.config import Settings
from shoal.local.processes import Process, address_of, ended_with_us, free_ports, on_this_machine, start
from shoal.swarm import membership
from shoal.swarm.invite import write_invite
from shoal.swarm.membership import Membership
from shoal.testing.checkpoints import write_checkpoint
from shoal.types import Span

pytestmark = pytest.mark.swarm

BEFORE = "861b8d6f4630"
"""The last commit of the release before, which speaks version 7 of the protocol alone."""
REPOSITORY = Path(__file__).parents[2]
NOT_IN_GIT = ("net/vendored", "gateway/page/built")
"""What setting up makes beside the sources."""
KERNELS = "torch"
"""Of the release before no C kernels are compiled; and nobody need import transformers, as modules do."""
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
"""A client of the release before, that asks once over each route."""


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
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), "llama")


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> list[int]:
    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    out = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=COUNT, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    tokens = out[0, len(PROMPT) :].tolist()
    assert len(set(tokens)) > COUNT // 2
    return tokens


class Mixed:
    """Nodes of both releases: of the one before for each half of the model, then of this one for each."""

    def __init__(self, home: Path, checkpoint: Path, source: Path, portal: BlockingPortal) -> None:
        settings = config.load(
            {"model": str(checkpoint), "mdns": False, "threads": 1, "format": "fp32", "kernels": KERNELS},
            {"SHOAL_HOME": str(home)},
        )
        self.portal = portal
        """Where the session is."""
        self.session: Session
        """Over the nodes of the release before: there were no others when it was opened."""
        self.client: Swarm
        self.model = str(checkpoint)
        self._home = home
        self._source = source
        self._inside = on_this_machine(settings, "demo")
        self._homes = [home / f"node{number}" for number in range(4)]
        self._ports = free_ports("127.0.0.1", 4)
        places = zip(self._homes, self._ports, strict=True)
        addresses = [address_of(node, "127.0.0.1", port) for node, port in places]
        self.members: Membership = replace(membership.create("demo"), bootstrap=tuple(addresses))
        self.peers = [address.rpartition("/")[2] for address in addresses]
        self._processes: list[Process] = []
        self.chosen: list[int] = []
        """The session's tokens."""

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[Mixed]:
        """Boot the nodes, and open the session between those of the release before and the others."""
        async with ended_with_us() as self._processes:
            await self._start(True, 0, 1)
            settings = self.settings("client")
            async with (
                open_swarm(settings, self.members) as self.client,
                self.client.session(self.model, tokens=64) as self.session,
            ):
                await self.choose()
                await self._start(False, 2, 3)
                yield self

    async def _start(self, old: bool, *numbers: int) -> None:
        """Boot nodes, those of this release in the homes that they have had before, if any."""
        processes: list[Process] = []
        for number in numbers:
            own = replace(self._inside, port=self._ports[number], bootstrap=self.members.bootstrap)
            with pytest.MonkeyPatch.context() as patch:
                if old:
                    patch.setenv("PYTHONPATH", str(self._source))
                home, span = self._homes[number], HALVES[number % 2]
                processes.append(await start(own, self.members, span, home, self._processes))
        for number, process in zip(numbers, processes, strict=True):
            assert (await process.event("serving"))["peer"] == self.peers[number]

    async def upgrade(self, number: int) -> None:
        """Start this release in the place of a node of the one before; the session goes on meanwhile."""
        with trio.fail_after(60):
            while not {*self.peers[2:]} <= {a.peer for a in self.client.announcements()}:  # noqa: ASYNC110
                await trio.sleep(0.1)
            process = self._processes[number]
            process.signal(signal.SIGTERM)
            await process.event("leaving")
            process.signal(signal.SIGTERM)  # it need not wait for the session: a replica has its blocks
            await process.process.wait()
        await self.choose()
        await self._start(False, number)
        await self.choose()

    async def choose(self) -> None:
        """The next token of the session."""
        given = self.chosen[-1:] or PROMPT
        self.chosen.append(int((await self.session.step(given))[-1].argmax()))

    async def ask_here(self, route: list[str]) -> list[int]:
        """What a client of this process gets over a route."""
        settings = replace(self.settings("asks"), only=tuple(route))
        async with (
            open_swarm(settings, self.members) as client,
            client.session(self.model, tokens=64) as session,
        ):
            step, chosen = PROMPT, list[int]()
            for _ in range(COUNT):
                step = [int((await session.step(step))[-1].argmax())]
                chosen += step
        return chosen

    def settings(self, home: str) -> Settings:
        """Those of a client in this process."""
        given = {"host": "127.0.0.1", "mdns": False, "bootstrap": list(self.members.bootstrap)}
        return config.load(given, {"SHOAL_HOME": str(self._home / home)})

    def ask_before(self, routes: list[list[str]]) -> list[Any]:
        """What a client of the release before gets over each route."""
        asked = {"routes": routes, "model": self.model, "prompt": PROMPT, "count": COUNT}
        words = json.dumps(asked | {"invite": write_invite(self.members)})
        with TemporaryDirectory(dir=self._home) as home:
            return json.loads(self._ran(Path(home), "-c", ASK, told=words))

    def make_key_before(self) -> str:
        """A key for the gateway, made by the release before."""
        words = ("-m", "shoal.cli", "key", "create", "laptop", "--json")
        return json.loads(self._ran(self._gateway_home, *words))["key"]

    def _ran(self, home: Path, *words: str, told: str = "") -> str:
        done = subprocess.run(
            [sys.executable, *words],
            input=told,
            env=self._environ(True, home),
            cwd=self._home,
            text=True,
            capture_output=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _environ(self, old: bool, home: Path) -> dict[str, str]:
        path = {"PYTHONPATH": str(self._source)} if old else {}
        ours = {"SHOAL_HOME": str(home), "SHOAL_HOST": "127.0.0.1", "SHOAL_MDNS": "0"}
        return {**os.environ, **path, **ours, "SHOAL_KERNELS": KERNELS}

    @property
    def _gateway_home(self) -> Path:
        """One for the gateways of both releases."""
        return self._home / "gateway"

    @contextmanager
    def gateway(self, old: bool) -> Generator[str]:
        """The address of a gateway."""
        membership.save(self._gateway_home / "swarms", self.members)
        command = [sys.executable, "-m", "shoal.cli", "gateway", "--gateway-port", "0", "--json"]
        running = subprocess.Popen(
            [*command, "--model", self.model, "--swarm", "demo", "--end-with-stdin"],
            env=self._environ(old, self._gateway_home),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert running.stdout is not None
            yield next(
                said["url"] for line in running.stdout if (said := json.loads(line)).get("event") == "gateway"
            )
            running.communicate(timeout=60)  # its input ends, and so does it
        finally:
            running.kill()
            running.wait()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, before: Path) -> Generator[Mixed]:
    with start_blocking_portal("trio") as portal:
        made = Mixed(tmp_path_factory.mktemp("mixed"), checkpoint, before, portal)
        with portal.wrap_async_context_manager(made.run()):
            yield made


def completed(url: str, key: str) -> str:
    """The text that a gateway answers with, once it has heard of its nodes."""
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60) as http:
        until = time.monotonic() + 60
        while not (models := http.get("/v1/models").json()["data"]):
            assert time.monotonic() < until
            time.sleep(0.2)
        body = {"model": models[0]["id"], "prompt": PROMPT, "max_tokens": COUNT, "temperature": 0}
        answer = http.post("/v1/completions", json=body).json()
    assert answer.get("usage", {}).get("completion_tokens") == COUNT, answer
    return answer["choices"][0]["text"]


def test_every_mixture_of_client_gateway_and_hops_gives_the_same_tokens(
    mixed: Mixed, expected: list[int]
) -> None:
    routes = [[mixed.peers[first], mixed.peers[second]] for first, second in product((0, 2), (1, 3))]
    assert mixed.ask_before(routes) == [expected] * len(routes)
    for route in routes:
        assert mixed.portal.call(mixed.ask_here, route) == expected


def test_a_gateway_of_this_release_goes_on_with_the_database_and_the_keys_of_the_one_before(
    mixed: Mixed, expected: list[int]
) -> None:
    key, texts = mixed.make_key_before(), list[str]()
    for old in (True, False):
        with mixed.gateway(old) as url:
            assert httpx.get(f"{url}/v1/models", timeout=60).status_code == 401
            texts.append(completed(url, key))
    assert texts == 2 * [AutoTokenizer.from_pretrained(mixed.model).decode(expected)]


def test_a_session_survives_while_its_hops_are_upgraded_one_after_another(
    mixed: Mixed, expected: list[int]
) -> None:
    mixed.portal.call(mixed.choose)
    assert [hop.address.peer for hop in mixed.session.ring.route] == mixed.peers[:2]
    for number in (0, 1):
        mixed.portal.call(mixed.upgrade, number)
    assert mixed.chosen == expected[:6]
    assert len(mixed.session.reroutes) >= 2
    assert mixed.portal.call(mixed.ask_here, mixed.peers[:2]) == expected
