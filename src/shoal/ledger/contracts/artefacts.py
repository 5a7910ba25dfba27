"""The contracts as compiled. A test compiles them again and compares."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

FILE = Path(__file__).with_name("artefacts.json")
ContractName = Literal["Escrow", "Registry", "Anchor"]
NAMES: tuple[ContractName, ...] = ("Escrow", "Registry", "Anchor")


class Artefact(Struct, frozen=True):
    """One contract."""

    abi: list[dict[str, Any]]
    creation: str
    """What a transaction that deploys it carries, in hexadecimal."""
    runtime: str
    """What is then at its address, byte for byte: nothing in it depends on who deployed it, or where."""


@cache
def artefact(name: ContractName) -> Artefact:
    """A contract of this package."""
    return msgspec.json.decode(FILE.read_bytes(), type=dict[ContractName, Artefact])[name]
