"""Is this machine fit: Python, packages, memory, disk, files, clock."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import shoal.errors
from shoal.cli.doctor.finding import Finding
from shoal.cli.status.trace import traces
from shoal.cli.version import LIBRARIES, release
from shoal.config import Settings
from shoal.executor.device.device import cpu
from shoal.executor.device.find import find_device
from shoal.executor.device.signs import makers_here
from shoal.executor.kernels.built import kernels_built
from shoal.models.seam.versions import check_version

LEAST_MEMORY = 1 << 30
"""Bytes: torch and transformers take about half of it before any weights."""
LEAST_DISK = 1 << 30


def python_version(_: Settings) -> Finding:
    text = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info < (3, 15):
        return Finding("python", "ok", text)
    return Finding("python", "fail", f"{text} is not 3.11 to 3.14", "make setup PYTHON=/path/to/python3.11")


def packages(_: Settings) -> Finding:
    found = {name: release(name) for name in LIBRARIES}
    text = ", ".join(f"{name} {text}" for name, text in found.items())
    if "missing" in found.values():
        return Finding("packages", "fail", text, "make setup")
    check_version()
    return Finding("packages", "ok", text)


def transformers(_: Settings) -> Finding:
    from shoal.models.seam.contract import check_everything

    return Finding("transformers", "ok", f"{check_everything()} has everything that Shoal relies on")


def memory(settings: Settings) -> Finding:
    free = cpu().memory().free
    if free < LEAST_MEMORY:
        text = f"{_gib(free)} free, {_gib(LEAST_MEMORY)} wanted"
        return Finding("memory", "fail", text, "close other programs that use memory")
    return Finding("memory", "ok", f"{_gib(free)} free")


def device(settings: Settings) -> Finding:
    """Where a node or client here would compute, why, and whether what ``--memory`` allows is free there."""
    choice = find_device(settings.device)
    memory = choice.device.memory()
    text = f"{choice.device}, {_gib(memory.free)} of {_gib(memory.total)} free: {choice.why}"
    if memory.free < settings.memory:
        fix = "close other programs, or lower --memory"
        return Finding("device", "fail", f"{text}; {_gib(settings.memory)} wanted", fix)
    if settings.device == "auto" and choice.device.is_cpu and makers_here():
        return Finding(
            "device", "note", text, "install a torch that is built for it, as pytorch.org says how"
        )
    return Finding("device", "ok", text)


def disk(settings: Settings) -> Finding:
    free = shutil.disk_usage(_existing(settings.paths.models)).free
    text = f"{free / 2**30:.1f} GiB free at {settings.paths.models}"
    if free < LEAST_DISK:
        return Finding("disk", "fail", text, "shoal models list, then shoal models rm NAME")
    return Finding("disk", "ok", text)


def config_file(settings: Settings) -> Finding:
    path = settings.paths.config_file
    return Finding(
        "config", "ok", f"{path}" if path.exists() else f"defaults; shoal config init writes {path}"
    )


def identity(settings: Settings) -> Finding:
    path = settings.paths.identity
    if not path.exists():
        return Finding("identity", "note", "none yet; the first node creates one", "shoal identity create")
    from shoal.net.identity import Identity

    return Finding("identity", "ok", Identity.load(path).peer)


def model(settings: Settings) -> Finding:
    from shoal.models.store.store import ModelStore

    store = ModelStore(settings.paths.models)
    recorded = next((found for found in store.list() if found.name == settings.model), None)
    if recorded is None:
        text = f"{settings.model} is not on this machine yet; it is fetched when first needed"
        return Finding("model", "note", text, f"shoal models pull {settings.model}")
    now = store.show(settings.model)
    if now.digest != recorded.digest:
        fix = f"shoal models rm {settings.model}, then shoal models pull {settings.model}"
        return Finding("model", "fail", f"{now.path} has changed since it was fetched", fix)
    return Finding("model", "ok", f"{now.name}, {now.shape.n_blocks} blocks, {now.digest[:19]}…")


def format(settings: Settings) -> Finding:
    """How a node here would hold its weights."""
    if settings.format != "auto":
        return Finding("format", "ok", f"{settings.format}, as set")
    if not find_device(settings.device).device.is_cpu:
        text = "as published or int8 for a node that is the first, on an accelerator as on CPUs"
        return Finding("format", "ok", text)
    if kernels_built():
        text = "as published or int8 for a node that is the first: the C kernels are built"
        return Finding("format", "ok", text)
    text = "bf16 or fp32, as the checkpoint is stored: the C kernels are not built, and all is slower"
    return Finding("format", "note", text, "make setup, once a C compiler is installed")


def draft(settings: Settings) -> Finding:
    """Whether the draft model is here, what memory it takes, and whether a client may take that."""
    if not settings.draft:
        return Finding("draft", "ok", "none is set: tokens are guessed from the text alone")
    from shoal.client.speculation.draft_model import draft_bytes, draft_format
    from shoal.executor.device.device import memory_budget
    from shoal.models.store.store import ModelStore

    store = ModelStore(settings.paths.models)
    if not store.is_here(settings.draft):
        text = f"{settings.draft} is not on this machine yet; it is fetched when first needed"
        return Finding("draft", "note", text, f"shoal models pull {settings.draft}")
    local, chosen = store.resolve(settings.draft), find_device(settings.device).device
    format = draft_format(local, settings.device)
    needed, budget = draft_bytes(local, format), memory_budget(settings, chosen)
    text = f"{local.name} takes {_gib(needed)} in {format} while it is used, of {_gib(budget)} on {chosen}"
    if needed >= budget:
        return Finding("draft", "fail", text, "choose a smaller draft model, or set memory to more")
    return Finding("draft", "ok", text)


def clock(settings: Settings) -> Finding:
    # Announcements carry times, and peers refuse those that are 30 s ahead. A clock that was never set is
    # behind the files that were installed by it.
    behind = Path(shoal.errors.__file__).stat().st_mtime - time.time()
    if behind > 60:
        return Finding(
            "clock", "fail", f"at least {behind:.0f} s behind", "set the clock, for example with NTP"
        )
    # A node that runs here has asked others for their time.
    if doubts := next(filter(None, (node.clock for node in traces(settings))), ""):
        return Finding("clock", "note", doubts, "set the clocks, for example with NTP")
    return Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S %Z"))


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())
