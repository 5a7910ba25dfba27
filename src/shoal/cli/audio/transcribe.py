"""`shoal transcribe`: what is said in a recording, written down by a model that the swarm serves."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli import options
from shoal.cli.enter import in_swarm
from shoal.cli.output import emit, many, say
from shoal.cli.progress import working
from shoal.errors import UsageError

if TYPE_CHECKING:
    from shoal.client.seq2seq.transcribe import Segment, Transcription
    from shoal.client.swarm import Swarm as Connected

MAX_FILE = 2 << 30
"""Bytes: hours of sound. All of it is read at once."""


def register(app: typer.Typer) -> None:
    app.command()(transcribe)


def transcribe(
    file: Annotated[Path, typer.Argument(metavar="FILE.wav", help="The recording: PCM in a WAV file.")],
    model: Annotated[
        str | None,
        typer.Option(help="A model of speech, such as Whisper; by default the one of config.toml."),
    ] = None,
    swarm: options.SwarmOption = None,
    public: options.PublicOption = None,
    format: options.FormatOption = None,
    device: options.DeviceOption = None,
    language: Annotated[
        str | None,
        typer.Option(
            help="Its code, as `en`; if not given, the model hears which it is.", show_default=False
        ),
    ] = None,
    translate: Annotated[bool, typer.Option("--translate", help="Write it down in English.")] = False,
    only: options.OnlyOption = None,
    attested_only: options.AttestedOnlyOption = None,
    measurements: options.MeasurementsOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Write down what is said in a recording. It is heard 30 seconds at a time."""
    settings = options.settings(
        swarm=swarm,
        public=public,
        model=model,
        format=format,
        device=device,
        only=only,
        attested_only=attested_only,
        measurements=measurements,
    )
    recording = read_file(file)
    began = time.monotonic()

    def heard(segment: Segment) -> None:
        if segment.text.strip() and not as_json:
            sys.stdout.write(segment.text.strip() + "\n")
            sys.stdout.flush()

    async def once(opened: Connected) -> Transcription:
        with working(f"asking {settings.model}"):
            return await opened.transcribe(
                settings.model,
                recording,
                language=language,
                task="translate" if translate else "transcribe",
                format=settings.asked_format,
                heard=heard,
            )

    found = in_swarm(settings, once)
    if as_json:
        fields = {
            "model": settings.model,
            "language": found.language,
            "seconds": found.seconds,
            "text": found.text,
            "segments": [
                {"start": s.start, "end": s.end, "text": s.text, "token_ids": list(s.token_ids)}
                for s in found.segments
            ],
        }
        emit(fields, as_json, lambda: "")
    spoken = f"{found.language}, " if found.language else ""
    took = f"{found.seconds:.1f} s of sound in {time.monotonic() - began:.2f} s"
    say(f"{spoken}{many(len(found.segments), 'window')}, {took}")


def read_file(file: Path) -> bytes:
    """A file's bytes.

    Raises:
        UsageError: it is not there, cannot be read, or is too large.
    """
    try:
        if file.stat().st_size > MAX_FILE:
            raise UsageError(f"{file} is larger than {MAX_FILE >> 30} GiB", check="cut it into several")
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}", check="check the path of the recording") from error
