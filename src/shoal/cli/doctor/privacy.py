"""`shoal privacy`: what a peer could read of a text at each depth of a model, found by trying it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from shoal.cli import options
from shoal.cli.output import emit, printable
from shoal.cli.progress import working
from shoal.executor.kernels.built import kernels_built
from shoal.routing.formats import choose_format

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shoal.bench.privacy import PrivacyReport

SENTENCES = (
    "Private ends raise the cost of looking. They are not encryption: whoever has the public weights finds "
    "the text by trying words.",
    "Neither a codec, noise that leaves answers usable, a permutation nor a rotation hides it.",
    "What must stay secret belongs on machines whose owners you trust (--only), or on none but your own.",
)


def register(app: typer.Typer) -> None:
    app.command()(privacy)


def privacy(
    model: options.ModelArgument,
    format: options.FormatOption = None,
    threads: options.ThreadsOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Show what peers could read of a text. Attacks the hidden states of a model on this machine.

    Learns from a public text to read what comes out of the first blocks, as who serves the next one could.
    Takes less than a minute for a small model.
    """
    from shoal.models.store.store import ModelStore

    settings = options.settings(format=format, threads=threads)
    local = ModelStore(settings.paths.models).show(model)
    with working(f"attacking {local.name}") as report:
        from shoal.bench.privacy import measure_privacy
        from shoal.executor.load import holds_published

        chosen = choose_format(
            settings.format, local.dtype, kernels=kernels_built(), published=holds_published(local)
        )
        found = measure_privacy(local, chosen.format, settings, report)
    emit(_fields(found), as_json, lambda: _shown(found))


def _fields(found: PrivacyReport) -> dict[str, Any]:
    return asdict(found) | {"seconds": round(found.seconds, 1), "encrypted": False}


def _shown(found: PrivacyReport) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from shoal.bench.privacy import CANDIDATES

    rows = Table(box=None, pad_edge=False)
    rows.add_column("private blocks")
    for heading in ("nearest word", "regression", f"trying {CANDIDATES} words", "trying all words"):
        rows.add_column(heading, justify="right")
    for leak in found.depths:
        shares = [f"{share:.0%}" for share in (leak.nearest, leak.ridge)]
        shares += [f"{share:.0%}" if leak.tokens else "-" for share in (leak.found, leak.recognised)]
        rows.add_row(f"{leak.depth}:0", *shares)
    head = (
        f"{printable(found.model)} in {found.format}: share of tokens that the peer after the private blocks "
        f"can read, of {found.tokens} tokens of a book, in {found.seconds:.0f} s"
    )
    return Group(Text(f"{head}\n"), rows, Text("\n" + "\n".join(SENTENCES)))
