"""Times and sizes as a plan shows them."""

from __future__ import annotations


def in_time(seconds: float) -> str:
    """Milliseconds, or seconds."""
    return f"{1000 * seconds:.3g} ms" if seconds < 0.9995 else f"{seconds:,.1f} s"


def in_bytes(size: float) -> str:
    """GiB, or MiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
