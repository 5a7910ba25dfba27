"""What gives a node quotes without the hardware, as the hardware would."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from shoal.node.attestation.collateral import CollateralSource
from shoal.node.attestation.quotes import Quote, TsmEntry
from shoal.node.attestation.start import Attesting
from shoal.testing.tee.snp import FakeChip
from shoal.types import TeeKind

HardwareSign = Callable[[bytes], bytes]
"""Signs 64 bytes, as hardware does; raises OSError or QuoteFailed."""


@dataclass
class FakeQuotes:
    """A :class:`shoal.node.attestation.quotes.QuoteSource`. ``asked`` counts."""

    kind: TeeKind
    sign: HardwareSign
    asked: int = 0

    def quote(self, report_data: bytes) -> Quote:
        self.asked += 1
        return Quote(self.kind, self.sign(report_data))


class FixedCollateral(CollateralSource):
    """Always the same."""

    def __init__(self, data: bytes) -> None:
        super().__init__("")
        self._data = data

    def beside(self, quote: Quote) -> bytes:
        return self._data


def attesting_on(chip: FakeChip, sign: HardwareSign | None = None) -> Attesting:
    """What a node on a chip shows, or says to."""
    quotes = FakeQuotes("snp", sign or chip.report)
    return Attesting(quotes, FixedCollateral(chip.collateral.encoded()), "snp")


@dataclass
class FakeTsm:
    """A kernel's configfs-tsm: an entry's quote is of what was written last, each writing counts."""

    provider: str
    sign: HardwareSign
    auxiliary: bytes = b""
    entries: list[FakeTsmEntry] = field(default_factory=list["FakeTsmEntry"])
    """Those that are open."""

    @contextmanager
    def entry(self) -> Generator[TsmEntry]:
        made = FakeTsmEntry(self)
        self.entries.append(made)
        try:
            yield made
        finally:
            self.entries.remove(made)


class FakeTsmEntry:
    """One entry."""

    def __init__(self, tsm: FakeTsm) -> None:
        self._tsm = tsm
        self._given = b""
        self.generation = 0

    def read(self, name: str) -> bytes:
        match name:
            case "provider":
                return f"{self._tsm.provider}\n".encode()
            case "generation":
                return f"{self.generation}\n".encode()
            case "outblob":
                return self._tsm.sign(self._given)
            case "auxblob":
                return self._tsm.auxiliary
            case _:
                raise FileNotFoundError(2, "No such file or directory", name)

    def write(self, name: str, data: bytes) -> None:
        if name != "inblob" or len(data) != 64:
            raise OSError(22, "Invalid argument")
        self._given = data
        self.generation += 1
