"""A report as one HTML file that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from shoal.bench.report.plots import (
    against_sessions,
    curves,
    points_of,
    roofline,
    roofline_series,
    step_split,
)
from shoal.bench.report.svg import colour, short
from shoal.bench.results import PARTS, BenchReport, Measurement

STYLE = """
:root { color-scheme: light dark; --bg:#f5f7f8; --card:#fff; --ink:#16242c; --soft:#5b6b75; --grid:#e3e9ec;
  --bar:#d5e4ea; --c1:#0b7285; --c2:#e8590c; --c3:#7048e8; --c4:#2b8a3e; --c5:#c2255c; --c6:#1971c2;
  --c7:#e0a100; --c8:#5c636a; }
@media (prefers-color-scheme: dark) { :root { --bg:#0e171c; --card:#16222a; --ink:#e6eef2; --soft:#93a5b0;
  --grid:#263740; --bar:#23414d; --c1:#3bc9db; --c2:#ff922b; --c3:#b197fc; --c4:#69db7c; --c5:#f783ac;
  --c6:#74c0fc; --c7:#ffd43b; --c8:#adb5bd; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--bg); color:var(--ink); font:15px/1.5 system-ui, sans-serif; }
main { max-width:960px; margin:0 auto; padding:40px 20px 64px; }
h1 { font-size:26px; line-height:1.25; margin:0 0 4px; letter-spacing:-.01em; }
h2 { font-size:17px; margin:0 0 12px; }
section { background:var(--card); border:1px solid var(--grid); border-radius:12px; padding:22px 24px;
  margin-top:20px; overflow-x:auto; }
.machine { color:var(--soft); margin:0; }
svg { display:block; width:100%; height:auto; font:12px system-ui, sans-serif; }
svg text { fill:var(--ink); }
svg .tick { fill:var(--soft); }
svg .note { fill:var(--soft); font-size:11px; }
svg .axis { fill:var(--ink); font-size:12px; font-weight:600; }
.legend { margin:10px 0 0; display:flex; flex-wrap:wrap; gap:4px 18px; color:var(--soft); font-size:13px; }
.legend i { display:inline-block; width:10px; height:10px; border-radius:50%; margin-right:6px; }
table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums; }
th { text-align:left; color:var(--soft); font-weight:600; font-size:13px; }
th, td { padding:6px 14px 6px 0; border-bottom:1px solid var(--grid); white-space:nowrap; }
td:last-child { white-space:normal; min-width:150px; padding-right:0; }
tr:last-child td { border-bottom:0; }
.n { text-align:right; }
.part { display:inline-block; width:70px; height:8px; margin-right:8px; border-radius:4px;
  background:var(--bar); overflow:hidden; vertical-align:1px; }
.part b { display:block; height:100%; background:var(--c1); }
footer { color:var(--soft); font-size:13px; margin-top:20px; }
"""


def page(report: BenchReport) -> str:
    """The whole file."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{STYLE}</style></head>\n<body><main>"
        f"<h1>{escape(report.title)}</h1>{_machine(report)}\n"
        f"{''.join(_plots(report))}"
        f"<section><h2>Results</h2>{_table(report.results)}</section>\n"
        f"<footer>{_notes(report)}</footer></main></body></html>\n"
    )


def _machine(report: BenchReport) -> str:
    machine = report.machine
    said = [f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"]
    said.append(f"{machine['memory_bytes'] / 2**30:.0f} GiB of memory")
    if "bandwidth_bytes_s" in machine:
        said.append(f"reads {short(machine['bandwidth_bytes_s'])}B/s")
    said.append(f"Shoal {machine['shoal']} on {machine['system']}")
    return f'<p class="machine">{escape("; ".join(said))}</p>'


def _plots(report: BenchReport) -> list[str]:
    shown: list[str] = []
    machine = report.machine
    if "bandwidth_bytes_s" in machine:
        points = points_of(report.results)
        drawing = roofline(machine["bandwidth_bytes_s"], machine["ops_per_s"], points)
        shown.append(_section("Under the roofline", drawing.svg() + _legend(roofline_series(points))))
    series = curves(report.results)
    if any(len(points) > 1 for points in series.values()):
        drawing = against_sessions(report.results)
        shown.append(_section("Tokens against sessions", drawing.svg() + _legend(list(series))))
    if report.steps:
        drawing = step_split(report.steps)
        shown.append(_section("Where the time of a step goes", drawing.svg() + _legend(PARTS)))
    return shown


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inside}</section>\n"


def _legend(names: Sequence[str]) -> str:
    items = (
        f'<span><i style="background:{colour(number)}"></i>{escape(name)}</span>'
        for number, name in enumerate(names)
    )
    return f'<p class="legend">{"".join(items)}</p>'


def _table(results: Sequence[Measurement]) -> str:
    head = (
        '<tr><th>measured</th><th class="n">median</th><th>unit</th><th class="n">spread</th>'
        "<th>of the roofline</th><th>against</th></tr>"
    )
    return f"<table>{head}{''.join(_row(result) for result in results)}</table>"


def _row(result: Measurement) -> str:
    against = ", ".join(f"{ratio:.2f} × {name}" for name, ratio in result.vs.items())
    roof = ""
    if result.of_roofline is not None:
        part = min(1.0, result.of_roofline)
        roof = f'<span class="part"><b style="width:{part:.0%}"></b></span>{result.of_roofline:.0%}'
    return (
        f'<tr><td>{escape(result.name)}</td><td class="n">{result.value:.4g}</td>'
        f'<td>{escape(result.unit)}</td><td class="n">{result.min:.4g} – {result.max:.4g}</td>'
        f"<td>{roof}</td><td>{escape(against)}</td></tr>"
    )


def _notes(report: BenchReport) -> str:
    said = (*report.notes, "Medians of rounds that took turns; spread is the least and the most.")
    return " ".join(escape(note if note.endswith(".") else f"{note}.") for note in said)
