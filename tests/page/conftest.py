"""A real swarm of node processes, a real gateway, and a real browser that looks at its page."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from shoal import config, process_environ
from shoal.gateway.page.static import FOLDER
from shoal.local.processes import LocalSwarm, ended_with_us, local_swarm, start
from shoal.models.store.store import ModelStore
from shoal.swarm import membership
from shoal.types import Span
from tests.packages import node

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "build/screenshots"
ANNOUNCE_S, EXPIRY_S = 2.0, 8.0


@dataclass
class Gateway:
    """`shoal gateway` as a process that can be killed and started again at the same address."""

    home: Path
    local: LocalSwarm
    port: int
    process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        settings = config.to_environ(self.local.settings) | {"SHOAL_HOME": str(self.home)}
        command = [sys.executable, "-m", "shoal.cli", "gateway", "--gateway-port", str(self.port), "--json"]
        environ = process_environ.child_environ(**settings)
        with (self.home / "gateway.log").open("a") as log:
            self.process = subprocess.Popen(
                command,
                env=environ,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout
        said = json.loads(self.process.stdout.readline() or "{}")
        assert said.get("event") == "gateway", (said, (self.home / "gateway.log").read_text()[-2000:])

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait(10)
            self.process = None


@dataclass
class Shoal:
    """Three nodes and a gateway; nodes come and go as a test wants."""

    portal: BlockingPortal
    local: LocalSwarm
    gateway: Gateway
    stack: ExitStack
    pids: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, span: Span) -> str:
        """One more node process; returns its peer."""
        home = self.gateway.home / f"more-{len(self.pids)}"
        told = self.stack.enter_context(
            self.portal.wrap_async_context_manager(one_more(self.local, span, home))
        )
        self.pids[told["peer"]] = told["pid"]
        return told["peer"]

    def kill(self, peer: str) -> None:
        os.kill(self.pids.pop(peer), signal.SIGKILL)


@asynccontextmanager
async def one_more(local: LocalSwarm, span: Span, home: Path) -> AsyncGenerator[dict[str, Any]]:
    async with ended_with_us() as processes:
        node = await start(local.settings, local.membership, span, home, processes)
        yield await node.event("serving")


@pytest.fixture(scope="package")
def shoal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shoal]:
    if not (FOLDER / "index.html").is_file():
        needs("the page is not built: python hatch_build.py page")
    home = tmp_path_factory.mktemp("page")
    wanted = {"mdns": False, "threads": 1, "announce_s": ANNOUNCE_S, "expiry_s": EXPIRY_S}
    settings = config.load(wanted, {"SHOAL_HOME": str(home)})
    n_blocks = ModelStore(settings.paths.models).resolve(settings.model).shape.n_blocks
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal("trio"))
        local = stack.enter_context(portal.wrap_async_context_manager(local_swarm(settings, n_blocks, 3)))
        membership.save(home / "swarms", local.membership)
        gateway = Gateway(home, local, free_port())
        stack.callback(gateway.kill)
        gateway.start()
        yield Shoal(portal, local, gateway, stack, {node["peer"]: node["pid"] for node in local.nodes})


@contextmanager
def pretending(scene: str) -> Iterator[str]:
    """The address of a gateway that pretends, with the built page."""
    if not (FOLDER / "index.html").is_file():
        needs("the page is not built: python hatch_build.py page")
    port = free_port()
    command = [str(node()), str(ROOT / "page/dev/gateway.ts"), str(port), scene]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as gateway:
        try:
            assert gateway.stdout and "http" in gateway.stdout.readline()
            yield f"http://127.0.0.1:{port}/"
        finally:
            gateway.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def needs(reason: str) -> None:
    """Where it counts, what these tests need must be there."""
    pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One for all the page's tests, and for no others: its driver keeps an event loop in this thread."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        needs("no browser: scripts/setup.sh tests")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


@dataclass
class Looking:
    """One open page, and what its console said that is wrong."""

    page: Page
    said: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        def hear(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                self.said.append(message.text)

        self.page.on("console", hear)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))

    def view(self, name: str) -> Page:
        self.page.locator(f'nav a[href="#/{name}"]').click()
        return self.page

    def shot(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png")

    def until(self, holds: Callable[[], bool], within_s: float) -> float:
        """Wait for something that the page shows; returns after how many seconds it did."""
        begun = time.monotonic()
        while not holds():
            assert time.monotonic() - begun < within_s, f"not within {within_s} s"
            self.page.wait_for_timeout(100)
        return time.monotonic() - begun


@pytest.fixture
def looking(shoal: Shoal, browser: Browser) -> Iterator[Looking]:
    """A browser at the gateway's page. Nothing may go wrong in its console."""
    context = browser.new_context(viewport={"width": 1280, "height": 820})
    page = context.new_page()
    seen = Looking(page)
    page.goto(shoal.gateway.url)
    page.locator('.state[data-link="open"]').wait_for()
    page.locator("select#model option", has_text="SmolLM2").first.wait_for(state="attached")
    yield seen
    context.close()
    assert seen.said == []
