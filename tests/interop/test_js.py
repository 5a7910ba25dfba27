"""A js-libp2p peer on our network: it dials, pings and finds providers; without the key it is refused.

The packages come from npm, at the versions of package-lock.json, once per machine.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from shoal.net.host import Libp2pNetwork, NetworkSettings, open_network
from shoal.net.identity import Identity
from shoal.net.libp2p.private_network import pnet_key
from tests.net.conftest import ping_once
from tests.packages import installed, node, npm_ci

HERE = Path(__file__).parent
FILES = ("package.json", "package-lock.json", "peer.mjs")
DIGEST = hashlib.sha256(b"a model's manifest").digest()
SECRET = b"s" * 32


@dataclass(frozen=True)
class JsPeer:
    """The js peer's program, installed, and the node that runs it."""

    node: Path
    program: Path

    async def run(self, **asked: Any) -> dict[str, Any]:
        """What the js peer says."""
        with trio.fail_after(40):
            done = await trio.run_process(self.command(asked), capture_stdout=True)
        return json.loads(done.stdout)

    @asynccontextmanager
    async def serving(self, **asked: Any) -> AsyncGenerator[dict[str, Any]]:
        """What the js peer says, while it serves."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        async with trio.open_nursery() as nursery:
            process = await nursery.start(partial(trio.run_process, self.command(asked), **pipes))
            with trio.fail_after(40):
                said = b""
                while not said.endswith(b"\n") and (part := await process.stdout.receive_some()):
                    said += part
            yield json.loads(said)
            await process.stdin.aclose()

    def command(self, asked: dict[str, Any]) -> list[str]:
        return [str(self.node), str(self.program), json.dumps(asked)]


@pytest.fixture(scope="session")
def peer() -> JsPeer:
    """The js peer, installed once per machine and per version of its packages."""
    return JsPeer(node(), installed("js-libp2p", HERE, FILES, npm_ci) / "peer.mjs")


def serving(secret: bytes | None = None) -> Any:
    return open_network(NetworkSettings(Identity.ephemeral(), secret, host="127.0.0.1"))


def target(network: Libp2pNetwork) -> str:
    return f"{network.address.libp2p[0]}/p2p/{network.peer}"


async def test_a_js_peer_dials_pings_and_finds_who_serves_a_model(peer: JsPeer):
    async with serving() as node, serving() as other:
        await other.connect(target(node), deadline_s=5)
        await other.provide(DIGEST)
        said = await peer.run(target=target(node), digest=DIGEST.hex())
        assert "error" not in said
        assert 0 <= said["ping"] < 1000
        (provider,) = said["providers"]
        assert provider["id"] == other.peer
        assert [a.partition("/p2p/")[0] for a in provider["addresses"]] == list(other.address.libp2p)


async def test_the_node_that_is_asked_may_be_the_one_that_serves(peer: JsPeer):
    async with serving() as node:
        await node.provide(DIGEST)
        said = await peer.run(target=target(node), digest=DIGEST.hex())
        assert [p["id"] for p in said["providers"]] == [node.peer]


async def test_a_node_finds_the_js_peer_that_serves(peer: JsPeer):
    async with serving() as node, serving() as asker:
        await asker.connect(target(node), deadline_s=5)
        async with peer.serving(target=target(node), digest=DIGEST.hex(), provide=True) as said:
            assert "error" not in said
            (found,) = await asker.find_providers(DIGEST, deadline_s=5)
            assert found.peer == said["id"]
            await asker.approach(found, deadline_s=5)
            await ping_once(asker, found.peer)


async def test_a_js_peer_that_speaks_plaintext_only_is_refused(peer: JsPeer):
    async with serving() as node:
        said = await peer.run(target=target(node), security="plaintext")
        assert "ping" not in said
        assert "EncryptionFailed" in said["error"] or "protocol" in said["error"].lower()
        assert node.connections() == []


@pytest.mark.parametrize("key", [None, bytes(32)], ids=["no key", "another key"])
async def test_a_js_peer_without_the_secret_is_refused(peer: JsPeer, key: bytes | None):
    async with serving(SECRET) as node:
        said = await peer.run(target=target(node), swarmKey=key.hex() if key else None)
        assert "ping" not in said
        assert said["error"]
        assert node.connections() == []


async def test_a_js_peer_with_the_secret_gets_in(peer: JsPeer):
    async with serving(SECRET) as node:
        await node.provide(DIGEST)
        said = await peer.run(target=target(node), swarmKey=pnet_key(SECRET).hex(), digest=DIGEST.hex())
        assert "error" not in said
        assert 0 <= said["ping"] < 1000
        assert [p["id"] for p in said["providers"]] == [node.peer]
