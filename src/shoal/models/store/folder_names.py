"""Under which names models are known here, and what their folders are called."""

from __future__ import annotations

import hashlib
import re
import unicodedata

SLUG = 60
"""Letters of a model's name in that of its folder."""


def folder_name(name: str) -> str:
    """The name of a model's folder: what can be read of the model's name, and a digest of all of it.

    No two names have the same, whatever their letters, length or case, nor on a disk that does not tell case
    or Unicode's normal forms apart; and none is one that a system keeps for itself, as Windows does CON.txt.
    """
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:SLUG]
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]
    return f"{slug or 'model'}-{digest}"


def former_folder_name(name: str) -> str:
    """What earlier versions called it: not the name's alone, so what is there must say whose it is."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name.replace("/", "--")).lstrip(".") or "model"


def comparable_name(name: str) -> str:
    """What two names have in common that differ in case or in Unicode's normal form alone."""
    return unicodedata.normalize("NFC", name.casefold())
