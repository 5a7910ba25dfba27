"""Whether the C kernels are here. Apart from them, for who only asks that."""

from __future__ import annotations

from pathlib import Path

NATIVE = Path(__file__).parents[1] / "native"
BASIC = NATIVE / "kernels-v1.so"
"""The kernels for any CPU of this kind; better ones lie beside it."""


def kernels_built() -> bool:
    """Whether they were compiled when Shoal was installed."""
    return BASIC.exists()
