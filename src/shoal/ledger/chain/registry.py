"""The registry on a chain: stakes put down, asked for and taken back. To be called from a thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shoal.ledger.chain.client import ChainClient
from shoal.ledger.vouchers.keys import ChainKey
from shoal.ledger.vouchers.typed_data import ChainAddress, show_address


@dataclass(frozen=True, slots=True)
class StakeState:
    """A node's stake as the chain has it."""

    stake: int
    leaves_at: int | None
    """When it can be taken back, by the chain's clock; ``None`` while nobody has asked."""


@dataclass(frozen=True, slots=True)
class _Gift:
    """Coins for an address, in the form of a call of a contract."""

    client: ChainClient
    to: ChainAddress

    def estimate_gas(self, options: dict[str, Any], at: str) -> int:
        return self.client.estimate(options | {"to": show_address(self.to)}, at)

    def build_transaction(self, options: dict[str, Any]) -> dict[str, Any]:
        return options | {"to": show_address(self.to), "data": b""}


def register(client: ChainClient, key: ChainKey, owner: ChainAddress, peer: bytes, amount: int) -> Any:
    """Stake for the key that sends this. Raises as :meth:`ChainClient.transact`."""
    return client.transact(key, _functions(client).register(show_address(owner), peer, []), amount)


def leave(client: ChainClient, key: ChainKey, delegate: ChainAddress) -> Any:
    """Want a stake back. Raises as :meth:`ChainClient.transact`."""
    return client.transact(key, _functions(client).leave(show_address(delegate)))


def take_back(client: ChainClient, key: ChainKey, delegate: ChainAddress) -> Any:
    """Have it, after the delay. Raises as :meth:`ChainClient.transact`; before, ``not yet``."""
    return client.transact(key, _functions(client).withdraw(show_address(delegate)), at="pending")


def stake_of(client: ChainClient, delegate: ChainAddress) -> StakeState:
    """What a delegate has staked, in the newest block that is believed to stay.

    Raises:
        ChainError: down.
    """
    stake, _, _, leaves_at = client.read(_functions(client).nodes(show_address(delegate)))
    return StakeState(stake, leaves_at or None)


def give(client: ChainClient, key: ChainKey, to: ChainAddress, amount: int) -> Any:
    """Send coins. Raises as :meth:`ChainClient.transact`."""
    return client.transact(key, _Gift(client, to), amount)


def _functions(client: ChainClient) -> Any:
    return client.contract("Registry").functions
