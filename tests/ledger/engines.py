"""Two chains for tests: one in this process, one a real node (anvil)."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from eth_tester import EthereumTester, PyEVMBackend
from eth_tester.exceptions import TransactionFailed
from web3 import EthereumTesterProvider, HTTPProvider, Web3
from web3.exceptions import ContractLogicError

from shoal.ledger.contracts.artefacts import ContractName, artefact
from tests.packages import installed, npm_ci

HERE = Path(__file__).parent
GAS = 1_500_000
GIVEN = 10**20
START_WITHIN_S = 30


@dataclass
class Engine:
    """A chain with money to give away, whose clock the tests set."""

    name: str
    w3: Web3

    @property
    def rich(self) -> str:
        return self.w3.eth.accounts[0]

    def deploy(self, name: ContractName) -> Any:
        found = artefact(name)
        contract = self.w3.eth.contract(abi=found.abi, bytecode=found.creation)
        receipt = self.receipt(contract.constructor().transact({"from": self.rich, "gas": 2 * GAS}))
        return self.w3.eth.contract(address=receipt["contractAddress"], abi=found.abi)

    def receipt(self, sent: Any) -> Any:
        return self.w3.eth.wait_for_transaction_receipt(sent, timeout=30, poll_latency=0.005)

    def send(self, call: Any, sender: str, value: int = 0) -> Any:
        """Call a contract in a transaction. It must go well."""
        gas_price = self.w3.eth.gas_price
        options = {"from": sender, "value": value, "gas": GAS, "gasPrice": gas_price}
        receipt = self.receipt(call.transact(options))
        assert receipt["status"] == 1, receipt
        return receipt

    def refusal(self, call: Any, sender: str, value: int = 0) -> str:
        """Why a contract would refuse a call. It must."""
        try:
            call.call({"from": sender, "value": value, "gas": GAS})
        except (ContractLogicError, TransactionFailed) as error:
            return str(error.args[0]).removeprefix("execution reverted: ")
        raise AssertionError("it was not refused")

    def give(self, address: str, amount: int = GIVEN) -> None:
        gas_price = self.w3.eth.gas_price
        options = {"from": self.rich, "to": address, "value": amount, "gasPrice": gas_price}
        self.receipt(self.w3.eth.send_transaction(options))

    def pass_time(self, seconds: int) -> None:
        if self.name == "anvil":
            self.rpc("evm_increaseTime", seconds)
            self.rpc("evm_mine")
        else:
            tester = self.w3.provider.ethereum_tester
            tester.time_travel(self.w3.eth.get_block("latest")["timestamp"] + seconds)
            tester.mine_block()

    def rpc(self, method: str, *arguments: Any) -> Any:
        """What only the node of tests can be asked."""
        answer = self.w3.provider.make_request(method, list(arguments))
        assert "error" not in answer, answer
        return answer["result"]


def in_process() -> Engine:
    return Engine("in-process", Web3(EthereumTesterProvider(EthereumTester(PyEVMBackend()))))


def anvil_program() -> Path:
    folder = installed("anvil", HERE, ["package.json", "package-lock.json"], npm_ci)
    (found,) = (folder / "node_modules/@foundry-rs").glob("anvil-*/bin/anvil*")
    return found


@contextmanager
def anvil(gas_price: int = 0) -> Iterator[Engine]:
    """A node of its own process, where a unit of gas costs so many wei."""
    price = str(gas_price)
    command = [str(anvil_program()), "--port", "0", "--base-fee", price, "--gas-price", price]
    # A file and not a pipe: nobody reads it later, and a full pipe would stop the node.
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            url = f"http://{_address(process, log)}"
            yield Engine("anvil", Web3(HTTPProvider(url, request_kwargs={"timeout": 10})))
        finally:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], log: IO[str]) -> str:
    """Where a node says that it listens."""
    until = time.monotonic() + START_WITHIN_S
    while time.monotonic() < until and process.poll() is None:
        log.seek(0)
        for line in log:
            if line.startswith("Listening on ") and line.endswith("\n"):
                return line.split()[-1]
        time.sleep(0.02)
    log.seek(0)
    raise AssertionError(f"anvil did not start: {log.read()[-2000:]}")
