"""What a lab reports: one JSON object, or a table for a reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from shoal.errors import ShoalError
from shoal.testing.lab.asking import TimedAnswer
from shoal.testing.lab.judge import Fault, describe_event, error_s, same_tokens
from shoal.testing.lab.plan import ANSWER
from shoal.testing.lab.runs import RunRecord

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, slots=True)
class LabResult:
    """One answer, and what happened meanwhile."""

    run: int
    name: str
    prompt: int
    tokens: int
    same: bool
    """Whether the tokens are those of the undisturbed answer, as far as they were to come."""
    gap_s: float
    counted: bool
    """Whether the gap counts: something was done to the nodes, and others were there to go on."""
    error: str
    """The code of the error it ended with, or the error's type; empty for an answer."""
    error_s: float | None
    """Seconds from the last thing done to the nodes to the error."""
    reroutes: int
    events: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LabReport:
    """All that a lab found."""

    plan: str
    model: str
    format: str
    seed: int
    nodes: int
    sessions_at_liars: int
    """Sessions that were opened at liars."""
    results: tuple[LabResult, ...]
    faults: tuple[Fault, ...]
    seconds: float

    @property
    def gaps(self) -> list[float]:
        return [result.gap_s for result in self.results if result.counted]

    def fields(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return {
            "plan": self.plan,
            "model": self.model,
            "format": self.format,
            "seed": self.seed,
            "nodes": self.nodes,
            "sessions_at_liars": self.sessions_at_liars,
            "runs": len(self.results),
            "same_tokens": sum(result.same for result in self.results),
            "gap_s_median": round(median(self.gaps), 3) if self.gaps else None,
            "gap_s_max": round(max(self.gaps), 3) if self.gaps else None,
            "errors": [asdict(fault) for fault in self.faults],
            "ok": not self.faults,
            "reroutes": sum(result.reroutes for result in self.results),
            "seconds": round(self.seconds, 1),
            "results": [asdict(result) for result in self.results],
        }


def results(number: int, played: RunRecord, references: Sequence[Sequence[int]]) -> list[LabResult]:
    """The answers of one run."""
    run = played.run
    return [
        LabResult(
            number,
            run.name,
            asked.prompt,
            len(asked.answer.token_ids),
            same_tokens(asked, run, references[asked.prompt]),
            round(asked.gap_s, 3),
            bool(asked.hits) and asked.error is None and run.expect == ANSWER and run.gap_s is None,
            _code(asked),
            None if (late := error_s(asked)) is None else round(late, 3),
            len(getattr(asked.answer, "reroutes", ())),
            tuple(_happened(played, asked)),
        )
        for asked in played.asked
    ]


def _code(asked: TimedAnswer) -> str:
    error = asked.error
    return "" if error is None else error.code if isinstance(error, ShoalError) else type(error).__name__


def _happened(played: RunRecord, asked: TimedAnswer) -> list[str]:
    """What was done while the answer came, with the nodes it was done to."""
    return [
        f"{describe_event(done.event)}: {', '.join(done.nodes)}{' (late)' if done.late else ''}"
        for done in played.done
        if done.at in asked.hits
    ]


def report_table(report: LabReport) -> RenderableType:
    """The answers as a table, and below them the figures and what is wrong."""
    from rich.console import Group  # noqa: PLC0415  only a reader needs it
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    shown = Table("run", "what", "tokens", "same", "longest gap", "error", box=None, pad_edge=False)
    for result in report.results:
        shown.add_row(
            str(result.run),
            "; ".join((result.name, *result.events)),
            str(result.tokens),
            "yes" if result.same else "NO",
            f"{result.gap_s:.2f} s",
            result.error,
        )
    return Group(shown, Text("\n".join(["", *_lines(report)])))


def _lines(report: LabReport) -> list[str]:
    fields = report.fields()
    gaps = [_seconds(fields[name]) for name in ("gap_s_median", "gap_s_max")]
    return [
        f"{fields['runs']} answers, {fields['same_tokens']} with the same tokens; longest gap {gaps[0]} at "
        f"the median, {gaps[1]} at worst; {len(report.faults)} errors in {report.seconds:.0f} s",
        *(f"run {'-' if f.run is None else f.run}: {f.what}: {f.message}" for f in report.faults),
    ]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
