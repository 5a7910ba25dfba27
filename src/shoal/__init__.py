"""Shoal runs AI models that no single machine can hold, over a swarm of ordinary machines.

The library in four lines::

    import shoal

    with shoal.connect() as swarm:
        for delta in swarm.generate("SmolLM2-135M-Instruct", "The sea is"):
            print(delta.text, end="")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.client.answer import Answer
    from shoal.client.connect import Connection, connect
    from shoal.client.embeddings import Embeddings
    from shoal.client.generate import Delta
    from shoal.client.sampling import Sampling
    from shoal.client.seq2seq.transcribe import Transcription
    from shoal.client.session import Session
    from shoal.errors import ShoalError
    from shoal.planning.fleet.planned import plan_fleet

    __version__: str

__all__ = [
    "Answer",
    "Connection",
    "Delta",
    "Embeddings",
    "Sampling",
    "Session",
    "ShoalError",
    "Transcription",
    "connect",
    "plan_fleet",
]

_HOMES = {
    "Answer": "shoal.client.answer",
    "Connection": "shoal.client.connect",
    "Embeddings": "shoal.client.embeddings",
    "Delta": "shoal.client.generate",
    "Sampling": "shoal.client.sampling",
    "Session": "shoal.client.session",
    "ShoalError": "shoal.errors",
    "Transcription": "shoal.client.seq2seq.transcribe",
    "connect": "shoal.client.connect",
    "plan_fleet": "shoal.planning.fleet.planned",
}


def __getattr__(name: str) -> object:
    """Import a name when it is first used: ``import shoal`` and ``shoal --help`` must answer at once."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415  it takes as long as all else here

        return version("shoal")
    if name not in _HOMES:
        raise AttributeError(f"module 'shoal' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
