"""What an adapter is asked for by: its name or its digest, mostly behind a model's name: ``MODEL:ADAPTER``.

Pure but for a look at the disk: a path may have a colon.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from shoal.errors import UsageError
from shoal.models.adapters.adapter import LIKE_DIGEST, NAME
from shoal.models.store.catalogue import find_entry
from shoal.types import DIGEST


def split_name(model: str) -> tuple[str, str | None]:
    """The name of the model itself, and that of an adapter, if one is named.

    What is a path, a digest or a name of the catalogue with its colon names no adapter.
    """
    base, _, adapter = model.rpartition(":")
    if not base or NAME.fullmatch(adapter) is None or DIGEST.fullmatch(model) or find_entry(model):
        return model, None
    try:
        return (model, None) if Path(model).expanduser().exists() else (base, adapter)
    except OSError:  # no path can be that long
        return base, adapter


def is_key(text: str) -> bool:
    """Whether an adapter may be asked for by it: by a name, or by a digest."""
    return NAME.fullmatch(text) is not None or DIGEST.fullmatch(text) is not None


def digest_key(key: str) -> str:
    """The hex digits of a digest, or of the beginning of one; empty where ``key`` is a name."""
    digits = key.removeprefix("sha256:")
    return digits.lower() if LIKE_DIGEST.fullmatch(digits) else ""


def named_by(key: str) -> Callable[[str, str], bool]:
    """Tells by an adapter's name and digest whether ``key`` means it: its name, or eight or more of the first
    hex digits of its digest."""
    digits = digest_key(key)
    if digits:  # first: whatever others call theirs, a digest is what it says
        return lambda _, digest: digest.removeprefix("sha256:").startswith(digits)
    return lambda name, _: name == key


def only_one(key: str, digests: Sequence[str], where: str, before: str) -> None:
    """Raises UsageError: several adapters are called so; names their digests.

    Args:
        where: who has them: the beginning of the message.
        before: what a digest is written behind where one is asked for.
    """
    if len(digests) > 1:
        shown = ", ".join(digest[7:19] for digest in sorted(digests))
        raise UsageError(
            f"{where} {len(digests)} adapters called {key}, with the digests {shown}",
            check=f"name one by the beginning of its digest: {before}{min(digests)[7:19]}",
        )
