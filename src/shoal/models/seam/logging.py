"""What transformers prints: nothing while it works for us.

Relied on: the verbosity and the progress bars of ``transformers.utils.logging`` can be asked for and set.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from shoal.models.seam.contract import relied_on

with relied_on("what transformers prints"):
    from transformers.utils.logging import (
        disable_progress_bar,
        enable_progress_bar,
        get_verbosity,
        is_progress_bar_enabled,
        set_verbosity,
        set_verbosity_error,
    )


@contextmanager
def quiet() -> Generator[None]:
    """No progress bars or load reports of transformers: ours are drawn by the CLI."""
    verbosity, bars = get_verbosity(), is_progress_bar_enabled()
    set_verbosity_error()
    disable_progress_bar()
    try:
        yield
    finally:
        set_verbosity(verbosity)
        if bars:
            enable_progress_bar()
