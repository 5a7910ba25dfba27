"""What a lab of payments reports: one JSON object, or a table for a reader."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from shoal.testing.lab.pay.books import RunLosses

if TYPE_CHECKING:
    from rich.console import RenderableType

Victim = Literal["client", "hop", "chain"]


@dataclass(frozen=True, slots=True)
class Pace:
    """Answers of two swarms, asked in turns. Seconds of each answer, and tokens of all."""

    paid_s: tuple[float, ...]
    unpaid_s: tuple[float, ...]
    tokens: int

    @property
    def ratio(self) -> float:
        """Throughput paid, of that unpaid."""
        return sum(self.unpaid_s) / sum(self.paid_s)

    @property
    def ratio_median(self) -> float:
        """Of the pairs."""
        return median(free / paid for paid, free in zip(self.paid_s, self.unpaid_s, strict=True))


@dataclass(frozen=True, slots=True)
class PayResult:
    """One run."""

    run: int
    victim: Victim
    name: str
    """Of the hop; empty where it was none."""
    at_s: float
    """When it was killed, in seconds from when the answers were asked for."""
    answers: int
    broken: tuple[str, ...]
    """Why those broke off that were asked again, and came then."""
    losses: RunLosses


@dataclass(frozen=True, slots=True, kw_only=True)
class PayReport:
    """All that a lab of payments found."""

    model: str
    format: str
    seed: int
    nodes: int
    pace: Pace | None
    results: tuple[PayResult, ...]
    paid: int
    """In wei, by all vouchers."""
    redeemed_alone: int
    """What nodes had redeemed of that by themselves, before the end."""
    faults: tuple[str, ...]
    seconds: float

    def fields(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        pace = self.pace
        return {
            "model": self.model,
            "format": self.format,
            "seed": self.seed,
            "nodes": self.nodes,
            "answers": len(pace.paid_s) if pace else 0,
            "paid_tokens_s": round(pace.tokens / sum(pace.paid_s), 2) if pace else None,
            "unpaid_tokens_s": round(pace.tokens / sum(pace.unpaid_s), 2) if pace else None,
            "ratio": round(pace.ratio, 4) if pace else None,
            "ratio_median": round(pace.ratio_median, 4) if pace else None,
            "runs": len(self.results),
            "hop_loss_windows_max": round(max((one.losses.hop for one in self.results), default=0.0), 4),
            "client_loss_windows_max": round(
                max((one.losses.client for one in self.results), default=0.0), 4
            ),
            "broken": sum(len(one.broken) for one in self.results),
            "paid_wei": str(self.paid),
            "redeemed_alone_wei": str(self.redeemed_alone),
            "errors": list(self.faults),
            "ok": not self.faults,
            "seconds": round(self.seconds, 1),
            "results": [asdict(one) for one in self.results],
        }


def pay_table(report: PayReport) -> RenderableType:
    """The runs as a table, and below them the figures and what is wrong."""
    from rich.console import Group  # noqa: PLC0415  only a reader needs it
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    shown = Table("run", "killed", "at", "broken off", "hop lost", "client lost", box=None, pad_edge=False)
    for one in report.results:
        shown.add_row(
            str(one.run),
            f"{one.victim} {one.name}".strip(),
            f"{one.at_s:.1f} s",
            str(len(one.broken)),
            f"{one.losses.hop:.3f} windows",
            f"{one.losses.client:.3f} windows",
        )
    return Group(shown, Text("\n".join(["", *_lines(report)])))


def _lines(report: PayReport) -> list[str]:
    fields = report.fields()
    lines: list[str] = []
    if report.pace is not None:
        lines.append(
            f"{fields['answers']} answers paid at {fields['paid_tokens_s']} tokens/s, as many unpaid at"
            f" {fields['unpaid_tokens_s']}: {fields['ratio']}, and {fields['ratio_median']} at the median"
        )
    if report.results:
        lines.append(
            f"{fields['runs']} kills: a hop lost {fields['hop_loss_windows_max']} windows at most, a client"
            f" {fields['client_loss_windows_max']}"
        )
    return [*lines, f"{len(report.faults)} errors in {report.seconds:.0f} s", *report.faults]
