"""`shoal embed`: vectors of texts, from a model that the swarm serves."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from shoal.cli import options
from shoal.cli.chat.chat import read_piped
from shoal.cli.enter import in_swarm
from shoal.cli.output import check_output, emit, many, say, to_json
from shoal.cli.progress import working
from shoal.errors import UsageError

if TYPE_CHECKING:
    from shoal.client.embeddings import Embeddings
    from shoal.client.swarm import Swarm as Connected

OutputOption = Annotated[
    Path | None,
    typer.Option(help="Write the vectors to this .npy file, not to stdout.", show_default=False),
]


def register(app: typer.Typer) -> None:
    app.command()(embed)


def embed(
    model: options.ModelArgument,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]...", help="The texts; if not given, each line of stdin is one."),
    ] = None,
    swarm: options.SwarmOption = None,
    public: options.PublicOption = None,
    format: options.FormatOption = None,
    device: options.DeviceOption = None,
    dimensions: Annotated[
        int | None,
        typer.Option(help="Keep this many numbers of each vector.", min=1, show_default=False),
    ] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut texts that are too long, instead of refusing them.")
    ] = False,
    output: OutputOption = None,
    only: options.OnlyOption = None,
    private_ends: options.PrivateEndsOption = None,
    attested_only: options.AttestedOnlyOption = None,
    measurements: options.MeasurementsOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Turn texts into vectors. Prints one JSON list a line."""
    settings = options.settings(
        swarm=swarm,
        public=public,
        model=model,
        format=format,
        device=device,
        only=only,
        private_ends=private_ends,
        attested_only=attested_only,
        measurements=measurements,
    )
    wanted = list(texts) if texts else lines_of(sys.stdin)
    check_output(output, ".npy")
    began = time.monotonic()

    async def once(opened: Connected) -> Embeddings:
        with working(f"asking {settings.model}"):
            return await opened.embed(
                settings.model,
                wanted,
                dimensions=dimensions,
                truncate=truncate,
                format=settings.asked_format,
            )

    found = in_swarm(settings, once)
    show(settings.model, found, output, as_json)
    count, width = found.vectors.shape
    took = f"{many(sum(found.tokens), 'token')} in {time.monotonic() - began:.2f} s"
    say(f"{many(count, 'vector')} of {many(width, 'number')}, {took}")


def lines_of(stdin: TextIO) -> list[str]:
    """Each line of stdin that is not empty.

    Raises:
        UsageError: there are none, or as :func:`shoal.cli.chat.chat.read_piped`.
    """
    found = [line for line in read_piped(stdin).split("\n") if line.strip()]
    if not found:
        raise UsageError("there is no text", next_command='shoal embed MODEL "Some text" "Another text"')
    return found


def show(model: str, found: Embeddings, output: Path | None, as_json: bool) -> None:
    """Write the vectors to stdout, or to a file. Raises ``OSError``: it cannot be written."""
    fields: dict[str, Any] = {
        "model": model,
        "dimensions": found.vectors.shape[1],
        "tokens": list(found.tokens),
    }
    if output is None:
        vectors = found.vectors.tolist()
        emit(fields | {"embeddings": vectors}, as_json, lambda: "\n".join(map(to_json, vectors)))
        return
    import numpy as np

    np.save(output, found.vectors)
    if as_json:
        emit(fields | {"output": output}, as_json, lambda: "")
