"""A node's stake: put down, taken back, and lost to whoever shows that the node said two things."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shoal.errors import ChainError, UsageError
from shoal.ledger.chain import registry
from shoal.ledger.chain.client import ChainClient
from shoal.ledger.contracts.evidence import find_equivocation, registry_domain
from shoal.ledger.delegate import Delegate, delegate_file, read_delegate, write_delegate
from shoal.ledger.vouchers.keys import ChainKey
from shoal.ledger.vouchers.typed_data import ChainAddress, show_address
from shoal.trust.answer import Contradiction

GAS_OF_REGISTERING = 250_000
"""More than it takes: the delegate gets so much from the wallet to pay for it."""
TIMES_DEARER = 4
"""How much dearer gas may become until then."""
LEAST_STAKE = 10**16
"""In wei, as the contract has it."""

Unstaking = Literal["asked for", "waiting", "taken back"]


@dataclass(frozen=True, slots=True)
class Slashed:
    """What became of a node that said two things."""

    delegate: ChainAddress
    stake: int
    """In wei, before: half of it is the reporter's now."""
    transaction: str


def stake(client: ChainClient, key: ChainKey, folder: Path, peer: bytes, amount: int) -> Delegate:
    """Stake ``amount`` wei for the node whose identity is in a folder, or add so much.

    The delegate's key is kept before it is given anything. The stake goes back to ``key`` alone.

    Args:
        peer: the 32 bytes of the node's ed25519 key.

    Raises:
        UsageError: it is too little, or the node's delegate is of another registry.
        ChainError: as :meth:`ChainClient.transact`.
    """
    client.check()
    path = delegate_file(folder)
    delegate = read_delegate(path)
    if delegate is None:
        if amount < LEAST_STAKE:
            raise UsageError(f"a stake is at least {LEAST_STAKE} wei", check="stake 0.01 or more")
        delegate = Delegate(ChainKey.generate().secret, client.deployment.chain_id, _address(client))
        write_delegate(path, delegate)
    _check_registry(client, delegate)
    own = ChainKey.from_secret(delegate.secret)
    needed = amount + GAS_OF_REGISTERING * TIMES_DEARER * max(1, client.gas_price())
    if (lacking := needed - client.balance(own.address)) > 0:
        registry.give(client, key, own.address, lacking)
    registry.register(client, own, key.address, peer, amount)
    return delegate


def unstake(client: ChainClient, key: ChainKey, folder: Path) -> Unstaking:
    """Want the stake back, and have it a week later.

    Raises:
        UsageError: this node has none.
        ChainError: as :meth:`ChainClient.transact`.
    """
    client.check()
    delegate = read_delegate(delegate_file(folder))
    if delegate is None:
        raise UsageError("this node has not staked", next_command="shoal wallet stake AMOUNT")
    _check_registry(client, delegate)
    address = ChainKey.from_secret(delegate.secret).address
    found = registry.stake_of(client, address)
    if not found.stake:
        raise UsageError(
            "this node has no stake any more", check="it was taken back, or lost to who showed two receipts"
        )
    if found.leaves_at is None:
        registry.leave(client, key, address)
        return "asked for"
    try:
        registry.take_back(client, key, address)
    except ChainError as error:
        if error.reason == "not yet":
            return "waiting"
        raise
    return "taken back"


def slash(client: ChainClient, key: ChainKey, proof: Contradiction) -> Slashed:
    """Take the stake of a node that signed two things about one question.

    Raises:
        UsageError: the receipts are not counter-signed, or not by one delegate for this registry; or it has
            no stake.
        ChainError: as :meth:`ChainClient.transact`; ``reverted`` where the contract is not convinced.
    """
    client.check()
    if not all(proof.countersignatures):
        raise UsageError(
            f"{proof.peer} has not counter-signed these receipts: it had no stake to lose",
            check="it stays out of your routes; only nodes that have staked can lose something on a chain",
        )
    domain = registry_domain(client.deployment.chain_id, _address(client))
    found = find_equivocation(domain, proof.one, proof.other, proof.countersignatures)
    before = registry.stake_of(client, found.delegate).stake
    if not before:
        raise UsageError(
            f"the delegate {show_address(found.delegate)} has no stake in this registry",
            check="somebody was faster, or it has taken its stake back",
        )
    receipt = client.slash(key, found)
    return Slashed(found.delegate, before, "0x" + bytes(receipt["transactionHash"]).hex())


def _check_registry(client: ChainClient, delegate: Delegate) -> None:
    ours = client.deployment
    if (delegate.chain_id, delegate.registry) != (ours.chain_id, _address(client)):
        raise UsageError(
            f"this node's delegate is of chain {delegate.chain_id} and the registry"
            f" {show_address(delegate.registry)}; chain.toml names others",
            check="use the chain.toml with which it has staked",
        )


def _address(client: ChainClient) -> ChainAddress:
    return client.deployment.contracts["Registry"]
