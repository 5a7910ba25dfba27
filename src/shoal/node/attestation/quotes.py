"""Where this machine's hardware gives quotes, if it does: the seam to it.

Linux has one interface for TDX and SEV-SNP, configfs-tsm (since 6.7). Gramine gives quotes of SGX as files.
The Nitro Security Module is a device of its own.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shoal.errors import ShoalError
from shoal.types import TeeKind

TSM = Path("/sys/kernel/config/tsm/report")
GRAMINE = Path("/dev/attestation")
QUOTE_LIMIT = 64 << 10
PROVIDERS: dict[str, TeeKind] = {"tdx_guest": "tdx", "sev_guest": "snp"}
"""What configfs-tsm calls them."""


class QuoteFailed(ShoalError):
    """The hardware gives no quote."""

    code = "quote_failed"


@dataclass(frozen=True, slots=True)
class Quote:
    """What the hardware has signed."""

    kind: TeeKind
    data: bytes
    certificates: bytes = b""
    """AMD's, as the machine's owner has put them there; often empty."""


class QuoteSource(Protocol):
    """Hardware that gives quotes."""

    def quote(self, report_data: bytes) -> Quote:
        """A quote over 64 bytes. Takes up to a second: not for the event loop.

        Raises:
            QuoteFailed: there is none.
        """
        ...


class TsmEntry(Protocol):
    """One request of configfs-tsm: a folder whose files the kernel reads and writes."""

    def read(self, name: str) -> bytes:
        """Raises OSError: the kernel refuses."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Raises OSError: the kernel refuses."""
        ...


class TsmFolder:
    """The entries of this machine's configfs-tsm."""

    def __init__(self, path: Path = TSM) -> None:
        self._path = path

    @contextmanager
    def entry(self) -> Generator[TsmEntry]:
        """A new entry, until the block ends."""
        folder = self._path / f"shoal-{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir()
        try:
            yield _FolderEntry(folder)
        finally:
            folder.rmdir()


@dataclass(frozen=True, slots=True)
class _FolderEntry:
    path: Path

    def read(self, name: str) -> bytes:
        with (self.path / name).open("rb") as file:
            return file.read(QUOTE_LIMIT)

    def write(self, name: str, data: bytes) -> None:
        (self.path / name).write_bytes(data)


class TsmEntries(Protocol):
    """Makes entries; :class:`TsmFolder` is this machine's."""

    def entry(self) -> AbstractContextManager[TsmEntry]:
        """A new entry, until the block ends. Raises OSError: the kernel refuses."""
        ...


class TsmQuotes:
    """Quotes of TDX and SEV-SNP, by configfs-tsm.

    https://docs.kernel.org/ABI/testing/configfs-tsm. Each entry is new, so nobody else writes to it.
    """

    def __init__(self, entries: TsmEntries | None = None) -> None:
        self._entries = entries or TsmFolder()

    def quote(self, report_data: bytes) -> Quote:
        """See :class:`QuoteSource`."""
        try:
            with self._entries.entry() as entry:
                provider = entry.read("provider").decode("ascii", "replace").strip()
                if provider not in PROVIDERS:
                    raise QuoteFailed(
                        f"this machine's quotes come from {provider!r}, which Shoal does not know"
                    )
                entry.write("inblob", report_data)
                data = entry.read("outblob")
                certificates = entry.read("auxblob") if PROVIDERS[provider] == "snp" else b""
                if entry.read("generation").strip() != b"1":
                    raise QuoteFailed("somebody else has written to our request for a quote")
                return Quote(PROVIDERS[provider], data, certificates)
        except OSError as error:
            raise QuoteFailed(
                f"the kernel gives no quote: {error.strerror or error}",
                check=f"check that this user may write to {TSM}, and that the host gives guests quotes",
                next_command="dmesg | grep -i -e tdx -e sev",
            ) from error


class GramineQuotes:
    """Quotes of SGX, where Gramine runs us in an enclave: it has pseudo-files for them."""

    def __init__(self, path: Path = GRAMINE) -> None:
        self._path = path

    def quote(self, report_data: bytes) -> Quote:
        """See :class:`QuoteSource`."""
        try:
            (self._path / "user_report_data").write_bytes(report_data)
            return Quote("sgx", (self._path / "quote").read_bytes())
        except OSError as error:
            raise QuoteFailed(
                f"Gramine gives no quote: {error.strerror or error}",
                check='set sgx.remote_attestation = "dcap" in the manifest',
            ) from error
