"""`shoal version`."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

import typer

from shoal.cli.options import JsonOption
from shoal.cli.output import emit
from shoal.models.seam.versions import SUPPORTED
from shoal.net.libp2p import parts as libp2p_parts

LIBRARIES = ("torch", "transformers", "libp2p")


def register(app: typer.Typer) -> None:
    app.command()(version)


def version(as_json: JsonOption = False) -> None:
    """Print the versions of Shoal and its main dependencies."""
    found = {"shoal": release("shoal"), "python": platform.python_version()}
    found |= {name: release(name) for name in LIBRARIES}
    found["supports"] = f"transformers{SUPPORTED}"
    emit(found, as_json, lambda: "\n".join(f"{name} {text}" for name, text in found.items()))


def release(package: str) -> str:
    """A package's version, read without importing it; ``missing`` when it is not installed."""
    libp2p_parts.choose()  # by which the metadata of libp2p is found: Shoal brings the library along
    try:
        return installed(package)
    except PackageNotFoundError:
        return "missing"
