"""Which chain is used, and where our contracts are on it: ``chain.toml`` beside ``config.toml``.

Test chains alone: the contracts have had no audit by others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.errors import UsageError
from shoal.ledger.contracts.artefacts import NAMES, ContractName
from shoal.ledger.vouchers.typed_data import ChainAddress, SigningDomain, parse_address, show_address
from shoal.ledger.vouchers.voucher import escrow_domain
from shoal.toml_file import read_toml

TEST_CHAINS: Mapping[int, str] = {
    1337: "a chain of one's own",
    31337: "anvil",
    131277322940537: "eth-tester",
    11155111: "Sepolia",
    560048: "Hoodi",
    84532: "Base Sepolia",
    421614: "Arbitrum Sepolia",
    11155420: "OP Sepolia",
    80002: "Polygon Amoy",
}
OWN_CHAINS = (1337, 31337, 131277322940537)
"""Of these one machine makes the blocks, and only when there is something to put in."""
CONFIRMATIONS = 3


@dataclass(frozen=True, slots=True)
class Deployment:
    """A chain and our contracts on it."""

    url: str
    """Where its node answers JSON-RPC. May hold a key of whoever runs it."""
    chain_id: int
    contracts: Mapping[ContractName, ChainAddress]

    @property
    def escrow(self) -> SigningDomain:
        """Where vouchers hold."""
        return escrow_domain(self.chain_id, self.contracts["Escrow"])

    @property
    def node(self) -> str:
        """Its address as errors show it, without the path, in which keys of a provider stand."""
        return self.url.partition("://")[2].partition("/")[0].partition("?")[0].rpartition("@")[2]

    def encoded(self) -> str:
        """As TOML."""
        lines = [f'url = "{self.url}"', f"chain_id = {self.chain_id}"]
        lines += [f'{name.lower()} = "{show_address(self.contracts[name])}"' for name in NAMES]
        return "\n".join(lines) + "\n"


def check_test_chain(chain_id: int) -> None:
    """Refuse a chain whose money is worth something.

    Raises:
        UsageError: it is not one of :data:`TEST_CHAINS`.
    """
    if chain_id not in TEST_CHAINS:
        known = ", ".join(f"{number} ({name})" for number, name in TEST_CHAINS.items())
        raise UsageError(
            f"chain {chain_id} is no test chain: the contracts have had no audit by others",
            check=f"use one of: {known}",
        )


def confirmations_of(chain_id: int) -> int:
    """Blocks, its own included, after which a transaction is believed to stay."""
    return 1 if chain_id in OWN_CHAINS else CONFIRMATIONS


def check_url(url: str) -> None:
    """Refuse what is no address of a node.

    Raises:
        UsageError: it is none.
    """
    if not url.startswith(("http://", "https://")) or any(c in url for c in '"\\ \n\r\t'):
        raise UsageError(f"{url[:200]!r} is no address of a chain's node", check="write http://HOST:PORT")


def read_deployment(path: Path) -> Deployment:
    """What ``chain.toml`` says.

    Raises:
        UsageError: there is none, or it is damaged, or of a chain that is no test chain.
    """
    values = read_toml(path)
    if values is None:
        raise UsageError(
            f"no chain is set up: there is no {path}",
            check="deploy the contracts, or copy the chain.toml of whom you want to trade with",
            next_command="shoal wallet deploy --help",
        )
    return _deployment(path, values)


def _deployment(path: Path, values: dict[str, Any]) -> Deployment:
    wanted: dict[str, type] = {"url": str, "chain_id": int} | {name.lower(): str for name in NAMES}
    for name, kind in wanted.items():
        if type(values.get(name)) is not kind:
            raise UsageError(f"{path} needs {name}, of type {kind.__name__}", check="correct the file")
    if unknown := sorted(values.keys() - wanted.keys()):
        raise UsageError(f"{path} has an unknown name {unknown[0]!r}", check="correct the file")
    check_test_chain(values["chain_id"])
    check_url(values["url"])
    contracts: dict[ContractName, ChainAddress] = {
        name: parse_address(values[name.lower()]) for name in NAMES
    }
    return Deployment(values["url"], values["chain_id"], contracts)
