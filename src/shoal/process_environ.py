"""The environment of this process and of those that it starts, but for our own settings."""

from __future__ import annotations

import os
import sys


def child_environ(**changes: str) -> dict[str, str]:
    """The environment for a process that we start: ours with ``changes``, without our own settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    return kept | changes


def bare_environ() -> dict[str, str]:
    """The environment for a process that reads what strangers wrote: no secrets, no network, one thread."""
    needed = ("LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR")  # to find libraries, to start on Windows, to be tidy
    return {name: os.environ[name] for name in needed if name in os.environ} | {
        "HF_HUB_OFFLINE": "1",
        "MALLOC_ARENA_MAX": "2",  # glibc reserves 64 MiB for each, which would count against its memory
        "OMP_NUM_THREADS": "1",
        "PYTHONUTF8": "1",
        "RAYON_NUM_THREADS": "1",
        "RUST_BACKTRACE": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }


def share_cores() -> None:
    """Let OpenMP's threads sleep when they wait, unless the user wants otherwise. Before torch is imported.

    By default they spin for milliseconds after each forward, and so take the cores from the next hop when it
    is a process on the same machine.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_collectives_inside() -> None:
    """Let the processes of one span talk over this machine's own interface. Before they begin to.

    By default torch takes the interface of the host's name, at which others may listen and be heard.
    """
    if sys.platform != "win32":
        own = "lo0" if sys.platform == "darwin" else "lo"
        os.environ.setdefault("GLOO_SOCKET_IFNAME", own)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", own)
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # who waits in vain is told, and not ended
