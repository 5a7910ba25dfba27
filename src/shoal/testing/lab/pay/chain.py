"""A chain for a lab: anvil, in a process of its own, which may be killed and comes back with its blocks."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import trio

from shoal import leash, process_environ
from shoal.errors import ChainError, DeadlineExceeded, UsageError
from shoal.ledger.chain.client import ChainClient, deploy
from shoal.ledger.chain.deployment import Deployment
from shoal.ledger.chain.rpc import ask, connect
from shoal.ledger.vouchers.keys import ChainKey
from shoal.ledger.vouchers.typed_data import show_address
from shoal.local.processes import free_ports
from shoal.testing.lab.pay.books import Purse

CHAIN_ID = 31337
CLIENT_GIVEN, HOP_GIVEN = 10**24, 10**18
"""In wei, to the wallets of the lab."""
START_WITHIN_S = 30.0
LOOK_S = 0.05


class LabChain:
    """Made by :func:`lab_chain`. Nothing is burned on it: what gas costs, who makes the blocks has."""

    def __init__(self, program: Path, folder: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.deployment: Deployment | None = None
        self._program = program
        self._folder = folder
        self._port = port
        self._process: trio.Process | None = None
        self._rpc = connect(self.url)

    @property
    def client(self) -> ChainClient:
        """Asks it, and sends to it. Only once the contracts are there."""
        if self.deployment is None:
            raise ValueError("the contracts are not deployed")
        return ChainClient(self.deployment, poll_s=LOOK_S)

    async def begin(self, wallets: Mapping[ChainKey, int]) -> None:
        """Start it, give coins to wallets, and deploy the contracts.

        Args:
            wallets: keys, and what each is given, in wei. The first one deploys.

        Raises:
            DeadlineExceeded: it did not start.
            ChainError: it does not take the contracts.
        """
        await self.start()
        for key, amount in wallets.items():
            await trio.to_thread.run_sync(
                self.ask, "anvil_setBalance", [show_address(key.address), hex(amount)]
            )
        first = next(iter(wallets))
        made = partial(deploy, self.url, CHAIN_ID, first, poll_s=LOOK_S)
        self.deployment = await trio.to_thread.run_sync(made)

    async def start(self, *state: str) -> None:
        """Start its process, and wait until it answers. Raises DeadlineExceeded: it does not."""
        # It watches no pipe of ours: the leash does, so that it ends when we do, however that is.
        leashed = [sys.executable, "-P", leash.__file__, str(self._program)]
        options = ["--port", str(self._port), "--base-fee", "0"]
        with (self._folder / "chain.log").open("ab") as log:
            self._process = await trio.lowlevel.open_process(
                [*leashed, *options, *state],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=process_environ.child_environ(),
                process_group=0,
            )
        with trio.move_on_after(START_WITHIN_S):
            while True:
                if await trio.to_thread.run_sync(self._answers):
                    return
                await trio.sleep(LOOK_S)
        raise DeadlineExceeded(f"{self._program} did not start within {START_WITHIN_S:.0f} s")

    async def kill(self) -> None:
        """SIGKILL it. Its blocks stay, as those of a chain do whose node dies."""
        # It keeps them in memory alone: what a chain's node has on its disk is asked of it just before.
        packed = await trio.to_thread.run_sync(self.ask, "anvil_dumpState", [])
        await self.end()
        await trio.to_thread.run_sync(self._keep, packed)

    async def revive(self) -> None:
        """Start it again, with its blocks. Raises DeadlineExceeded: it does not come up."""
        await self.start("--load-state", str(self._state))

    async def end(self) -> None:
        """SIGKILL it for good."""
        process = self._process
        if process is not None and process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    def purse(self, key: ChainKey, given: int) -> Purse:
        """What a wallet has that was given so much, and what its transactions have cost. From a thread.

        Raises:
            ChainError: it is down.
        """
        address = show_address(key.address)
        found: Any = ask(lambda: [self._rpc.eth.get_block(n, True) for n in range(self._blocks)], self.url)
        sent = [one["hash"] for block in found for one in block["transactions"] if one["from"] == address]
        receipts: Any = ask(lambda: [self._rpc.eth.get_transaction_receipt(one) for one in sent], self.url)
        fees = sum(int(one["gasUsed"]) * int(one["effectiveGasPrice"]) for one in receipts)
        return Purse(given, self.client.balance(key.address), fees)

    def ask(self, method: str, arguments: Sequence[Any]) -> Any:
        """What only a node of tests can be asked. To be called from a thread.

        Raises:
            ChainError: it is down, or refuses.
        """
        request = cast("Any", self._rpc.provider).make_request
        answer = ask(lambda: request(method, list(arguments)), self.url)
        if "error" in answer:
            raise ChainError(f"{method}: {answer['error']}", reason="refused")
        return answer["result"]

    @property
    def _blocks(self) -> int:
        return self._rpc.eth.block_number + 1

    @property
    def _state(self) -> Path:
        return self._folder / "chain.json"

    def _keep(self, packed: str) -> None:
        state = gzip.decompress(bytes.fromhex(packed.removeprefix("0x")))
        json.loads(state)  # else it would begin anew, and say so in its log alone
        self._state.write_bytes(state)

    def _answers(self) -> bool:
        try:
            self.ask("eth_chainId", [])
        except ChainError:
            return False
        return True


@asynccontextmanager
async def lab_chain(program: Path | None, folder: Path) -> AsyncGenerator[LabChain]:
    """A chain that ends with the block. It is not started yet.

    Raises:
        UsageError: anvil is not here.
    """
    found = str(program) if program is not None else shutil.which("anvil")
    if found is None or shutil.which(found) is None:
        raise UsageError(
            f"there is no {found or 'anvil on the PATH'}: the lab's chain is one",
            check="install npm's package @foundry-rs/anvil, or say where its program is with --anvil",
        )
    (port,) = free_ports("127.0.0.1", 1)
    chain = LabChain(Path(found), folder, port)
    try:
        yield chain
    finally:
        with trio.CancelScope(shield=True):
            await chain.end()
