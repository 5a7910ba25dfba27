"""The accounts of this machine on its disk: what was signed and what was taken is there before it counts."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
from blake3 import blake3
from filelock import FileLock, Timeout

from shoal.errors import BadLedgerFile, Busy, OutOfResources, UsageError
from shoal.ledger.vouchers.payee import PayeeAccount
from shoal.ledger.vouchers.payer import PayerAccount
from shoal.types import SHA256
from shoal.whole_file import write_whole

LOCK_WITHIN_S = 5.0
MAX_FILE = 1 << 16
MAX_ACCOUNTS = 4096
"""Of one side: each has a deposit on the chain, so more than these are somebody's play."""
_CHECKSUM = 64

PaymentAccount = TypeVar("PaymentAccount", PayeeAccount, PayerAccount)


class PaymentBook(Generic[PaymentAccount]):
    """A folder with a file for each payment channel. To be called from a thread: it waits for the disk.

    Args:
        kind: which side's accounts are in it.
    """

    def __init__(self, folder: Path, kind: type[PaymentAccount]) -> None:
        self._folder = folder
        self._decoder = msgspec.json.Decoder(kind)

    def add(self, account: PaymentAccount) -> None:
        """Begin to keep a payment channel.

        Raises:
            UsageError: it is kept already, or too many are.
            Busy, OutOfResources: as :meth:`change`.
        """
        path = self._path(account.channel_id)
        with self._locked(path):
            if path.exists():
                raise UsageError(f"the payment channel {path.stem} is kept already")
            if len(self.channel_ids()) >= MAX_ACCOUNTS:
                raise UsageError(
                    f"{MAX_ACCOUNTS} payment channels are kept already",
                    check="close those that are not used",
                    next_command="shoal wallet channels",
                )
            self._write(path, account)

    def remove(self, channel_id: bytes) -> None:
        """Keep a payment channel no more in which nothing is left. One that is not kept is no error.

        Raises:
            Busy, OutOfResources: as :meth:`change`.
        """
        path = self._path(channel_id)
        with self._locked(path):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise _unusable(path, error) from error

    def __contains__(self, channel_id: bytes) -> bool:
        """Whether a payment channel is kept, be it damaged. Raises OutOfResources: nobody can tell."""
        path = self._path(channel_id)
        try:
            return path.exists()
        except OSError as error:
            raise _unusable(path, error) from error

    def channel_ids(self) -> list[bytes]:
        """The payment channels that are kept, damaged ones too. What is named otherwise is none."""
        stems = (path.stem for path in self._folder.glob("*.account"))
        return sorted(bytes.fromhex(stem) for stem in stems if SHA256.fullmatch(stem))

    def read(self, channel_id: bytes) -> PaymentAccount:
        """An account as it is on disk.

        Raises:
            UsageError: there is none.
            BadLedgerFile: it is damaged: what was signed or taken must then be found elsewhere, not guessed.
            OutOfResources: it cannot be read.
        """
        path = self._path(channel_id)
        try:
            with path.open("rb") as stream:
                data = stream.read(MAX_FILE + 1)
        except FileNotFoundError as error:
            raise UsageError(
                f"no payment channel {channel_id.hex()} is kept here",
                check="restore the folder payments from a copy if it was lost, or find what you paid into",
                next_command="shoal wallet recover",
            ) from error
        except OSError as error:
            raise _unusable(path, error) from error
        return self._decoded(path, data)

    def change(self, channel_id: bytes, change: Callable[[PaymentAccount], PaymentAccount]) -> PaymentAccount:
        """Write what ``change`` makes of an account, while nobody else does. It is on the disk on return.

        What ``change`` raises leaves the file as it was.

        Raises:
            Busy: another process holds it, for long.
            UsageError, BadLedgerFile, OutOfResources: as :meth:`read`; or it cannot be written.
        """
        path = self._path(channel_id)
        with self._locked(path):
            before = self.read(channel_id)
            after = change(before)
            if after != before:
                self._write(path, after)
            return after

    def _path(self, channel_id: bytes) -> Path:
        return self._folder / f"{channel_id.hex()}.account"

    @contextmanager
    def _locked(self, path: Path) -> Generator[None]:
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = FileLock(path.with_suffix(".lock"), timeout=LOCK_WITHIN_S)
            lock.acquire()
        except Timeout as error:
            raise Busy(f"another process holds {path}") from error
        except OSError as error:
            raise _unusable(path, error) from error
        try:
            yield
        finally:
            lock.release()

    def _write(self, path: Path, account: PaymentAccount) -> None:
        body = msgspec.json.encode(account)
        data = blake3(body).hexdigest().encode() + b"\n" + body + b"\n"
        try:
            write_whole(path, data, replace=True)
        except OSError as error:
            raise _unusable(path, error) from error

    def _decoded(self, path: Path, data: bytes) -> PaymentAccount:
        checksum, body = data[:_CHECKSUM], data[_CHECKSUM + 1 : -1]
        if len(data) > MAX_FILE or blake3(body).hexdigest().encode() != checksum:
            raise _damaged(path, "its contents do not fit its checksum")
        try:
            account = self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _damaged(path, str(error)) from error
        if account.channel_id.hex() != path.stem:
            raise _damaged(path, "it is of another payment channel")
        return account


def _damaged(path: Path, why: str) -> BadLedgerFile:
    return BadLedgerFile(
        f"{path} is damaged: {why}",
        check="restore it from a copy; or move it away, and find on the chain what you paid into. The newest"
        " voucher the other side has too",
        next_command="shoal wallet recover",
    )


def _unusable(path: Path, error: OSError) -> OutOfResources:
    return OutOfResources(f"{path}: {error.strerror}", check="check that this user may read and write it")
