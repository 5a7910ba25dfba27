"""An operator's list: which software, on which machines, may compute for us. A TOML file.

Each entry has all measurements that decide what runs; to leave one out would let anything run there. A list
is an operator's own: nobody else can know which images it has built, or whose builds it believes.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from shoal.errors import UsageError
from shoal.trust.attestation.evidence import AttestationRefused, Claims

MAX_LIST = 1 << 20
MAX_ENTRIES = 256

EntryName = Annotated[str, Meta(min_length=1, max_length=100)]
Hex32 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Hex48 = Annotated[str, Meta(pattern="^[0-9a-f]{96}$")]
Version = Annotated[int, Meta(ge=0, le=255)]
IntelStatus = Literal[
    "UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded"
]
"""What Intel says of a machine's versions. Outdated and revoked ones cannot be allowed."""


class _Entry(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: EntryName

    def measured(self) -> Mapping[str, str]:
        """The measurements that must be met."""
        raise NotImplementedError

    def accepts(self, claims: Claims) -> bool:
        """Whether the machine's versions are good enough."""
        raise NotImplementedError


class _Intel(_Entry, frozen=True, kw_only=True):
    tcb: tuple[IntelStatus, ...] = ("UpToDate",)

    def accepts(self, claims: Claims) -> bool:
        return claims.tcb in self.tcb


class TdxEntry(_Intel, frozen=True, kw_only=True):
    """A virtual machine on Intel TDX: its firmware, configuration, kernel, and initial files."""

    mr_td: Hex48
    rt_mr0: Hex48
    rt_mr1: Hex48
    rt_mr2: Hex48
    rt_mr3: Hex48 | None = None
    """What the software in it has added itself; anything where it is left out."""

    def measured(self) -> Mapping[str, str]:
        found = {
            "mr_td": self.mr_td,
            "rt_mr0": self.rt_mr0,
            "rt_mr1": self.rt_mr1,
            "rt_mr2": self.rt_mr2,
        }
        return found | ({"rt_mr3": self.rt_mr3} if self.rt_mr3 is not None else {})


class SgxEntry(_Intel, frozen=True, kw_only=True):
    """An enclave on Intel SGX."""

    mr_enclave: Hex32

    def measured(self) -> Mapping[str, str]:
        return {"mr_enclave": self.mr_enclave}


class SnpVersions(Struct, frozen=True, forbid_unknown_fields=True):
    """The least versions of what an AMD machine runs below its guests."""

    boot_loader: Version
    tee: Version
    snp: Version
    microcode: Version
    fmc: Version = 0
    """Only Turin has one."""


class SnpEntry(_Entry, frozen=True, kw_only=True):
    """A virtual machine on AMD SEV-SNP: its firmware, with the kernel and its files where these are hashed
    into it."""

    measurement: Hex48
    least: SnpVersions
    """AMD signs which versions run, and leaves it to us which are good enough."""
    host_data: Hex32 | None = None

    def measured(self) -> Mapping[str, str]:
        host = {"host_data": self.host_data} if self.host_data is not None else {}
        return {"measurement": self.measurement} | host

    def accepts(self, claims: Claims) -> bool:
        least: dict[str, int] = msgspec.structs.asdict(self.least)
        return all(claims.levels.get(component, 0) >= version for component, version in least.items())


class NitroEntry(_Entry, frozen=True, kw_only=True):
    """An AWS Nitro enclave: its image, its kernel, its application."""

    pcr0: Hex48
    pcr1: Hex48
    pcr2: Hex48

    def measured(self) -> Mapping[str, str]:
        return {"pcr0": self.pcr0, "pcr1": self.pcr1, "pcr2": self.pcr2}

    def accepts(self, claims: Claims) -> bool:
        return True  # AWS keeps its hypervisor itself, and says nothing of its versions


class Measurements(Struct, frozen=True, forbid_unknown_fields=True):
    """What may run. Of each kind of hardware, any number of entries."""

    tdx: Annotated[tuple[TdxEntry, ...], Meta(max_length=MAX_ENTRIES)] = ()
    sgx: Annotated[tuple[SgxEntry, ...], Meta(max_length=MAX_ENTRIES)] = ()
    snp: Annotated[tuple[SnpEntry, ...], Meta(max_length=MAX_ENTRIES)] = ()
    nitro: Annotated[tuple[NitroEntry, ...], Meta(max_length=MAX_ENTRIES)] = ()

    def match(self, claims: Claims) -> str:
        """The name of the entry that a machine meets.

        Raises:
            AttestationRefused: it meets none.
        """
        entries: Sequence[_Entry] = getattr(self, claims.kind)
        met = [entry for entry in entries if entry.measured().items() <= claims.measurements.items()]
        if not met:
            shown = ", ".join(f"{name} {value[:16]}…" for name, value in claims.measurements.items())
            told = f"its software is not on the list: {claims.kind}, {shown}"
            raise AttestationRefused("measurement", told, claims)
        found = next((entry for entry in met if entry.accepts(claims)), None)
        if found is None:
            raise AttestationRefused(
                "outdated",
                f"its machine is out of date for {met[0].name!r} on the list: {claims.tcb}",
                claims,
            )
        return found.name


def read_measurements(path: Path) -> Measurements:
    """Read a list.

    Raises:
        UsageError: it cannot be read, is empty, or has an entry that cannot be.
    """
    try:
        data = path.read_bytes()
        if len(data) > MAX_LIST:
            raise ValueError(f"it has {len(data)} bytes; at most {MAX_LIST} are read")
        found = msgspec.convert(_lowered(tomllib.loads(data.decode("utf-8"))), Measurements)
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, str(error)) from error
    if not (found.tdx or found.sgx or found.snp or found.nitro):
        raise _unreadable(path, "it has no entry, so it allows nobody")
    return found


def _lowered(value: Any) -> Any:
    """The same with hex digits as we write them."""
    match value:
        case dict():
            return {key: _lowered(inner) for key, inner in value.items()}
        case list():
            return [_lowered(inner) for inner in value]
        case str() if len(value) in (64, 96):
            return value.lower()
        case _:
            return value


def _unreadable(path: Path, why: str) -> UsageError:
    return UsageError(
        f"{path} is no list of measurements: {why}",
        check="write it as docs/attestation.md says: what [[tdx]], [[sgx]], [[snp]] and [[nitro]] must have",
        next_command="shoal peers --attested --json",
    )
