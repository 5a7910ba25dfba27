"""The contracts of this folder, compiled. ``python -m tests.ledger.x402.contracts`` compiles them again."""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

from eth_tester import EthereumTester, PyEVMBackend
from eth_utils.address import to_canonical_address
from web3 import EthereumTesterProvider, Web3

from shoal.ledger.x402.offer import COLLECTOR, SETTLEMENT
from tests.ledger.compiler import compiled
from tests.ledger.engines import Engine

HERE = Path(__file__).parent
FILE = HERE / "contracts.json"
NAMES = ("Settlement", "Collector", "Token")
TOKEN = to_canonical_address("0x70ce000000000000000000000000000000000001")


def source_hash(name: str) -> str:
    """By which a test sees that what was compiled is what stands in the source."""
    return sha256((HERE / f"{name}.vy").read_bytes()).hexdigest()


def contract(name: str) -> dict[str, Any]:
    return json.loads(FILE.read_text())[name]


def engine_with_x402() -> Engine:
    """A chain in this process on which x402's contracts and a token stand."""
    accounts = PyEVMBackend.generate_genesis_state(num_accounts=10)
    for name, address in zip(NAMES, (SETTLEMENT, COLLECTOR, TOKEN), strict=True):
        code = bytes.fromhex(contract(name)["runtime"][2:])
        accounts[address] = {"balance": 0, "nonce": 1, "code": code, "storage": {}}
    backend = PyEVMBackend(genesis_state=accounts)
    return Engine("in-process", Web3(EthereumTesterProvider(EthereumTester(backend))))


if __name__ == "__main__":
    found = {name: compiled(name, HERE) | {"source": source_hash(name)} for name in NAMES}
    for one in found.values():
        del one["creation"]
    FILE.write_text(json.dumps(found) + "\n")
    sys.stdout.write(f"{FILE}\n")
