"""The key with which a node that has staked counter-signs receipts: ``delegate.json`` beside its identity.

It lies open, for its owner alone, as the node signs with it all the time. Whoever has it can lose the stake
and cannot have it: that goes back to the wallet that staked.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from shoal.errors import BadLedgerFile, NotAllowed, OutOfResources, UsageError
from shoal.ledger.vouchers.typed_data import AddressBytes, SigningDomain, WordBytes
from shoal.trust.receipt import Receipt
from shoal.whole_file import write_whole

MAX_FILE = 4096


class Delegate(Struct, frozen=True):
    """A key and the registry for which it signs."""

    secret: WordBytes
    chain_id: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    registry: AddressBytes

    @property
    def domain(self) -> SigningDomain:
        """Where its counter-signatures hold."""
        from shoal.ledger.contracts.evidence import registry_domain  # noqa: PLC0415  what nodes need is small

        return registry_domain(self.chain_id, self.registry)

    def __repr__(self) -> str:
        return f"Delegate(chain_id={self.chain_id})"


def delegate_file(folder: Path) -> Path:
    """Where it lies."""
    return folder / "delegate.json"


def write_delegate(path: Path, delegate: Delegate) -> None:
    """Keep a new one.

    Raises:
        UsageError: there is one, which may have a stake.
        OutOfResources: it cannot be written.
    """
    try:
        write_whole(path, msgspec.json.encode(delegate), replace=False)
    except FileExistsError as error:
        raise UsageError(f"{path} is there already", check="this node may have staked") from error
    except OSError as error:
        raise OutOfResources(f"{path} cannot be written: {error.strerror}") from error


def read_delegate(path: Path) -> Delegate | None:
    """The node's delegate; ``None`` where it has none.

    Raises:
        NotAllowed: others on this machine may read it.
        BadLedgerFile: it is damaged.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadLedgerFile(f"{path} cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise NotAllowed(
            f"{path} may be read by others on this machine, who can then lose the node's stake",
            check="find out who could read it",
            next_command=f"chmod 600 {path}",
        )
    try:
        return msgspec.json.decode(data, type=Delegate)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadLedgerFile(f"{path} is damaged: {error}", check="restore it from a copy") from error


def countersigner(folder: Path) -> Callable[[Receipt], bytes]:
    """What counter-signs a node's receipts: nothing where it has not staked.

    Raises:
        NotAllowed, BadLedgerFile: as :func:`read_delegate`.
        IncompatibleLibrary: it has staked, and the extra ``ledger`` is not installed.
    """
    delegate = read_delegate(delegate_file(folder))
    if delegate is None:
        return lambda receipt: b""
    from shoal.ledger.contracts.evidence import countersign  # noqa: PLC0415  only where there is a stake
    from shoal.ledger.vouchers.keys import ChainKey  # noqa: PLC0415

    key, domain = ChainKey.from_secret(delegate.secret), delegate.domain
    return lambda receipt: countersign(key, domain, receipt)
