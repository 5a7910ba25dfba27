"""Hops that compute something else than they should, and sign for it: what audits have to find.

``python -m shoal.testing.cheats CHEAT python -m shoal.cli …`` is what follows, with nodes that do so.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from shoal.executor import load
from shoal.executor.arrays import Floats
from shoal.executor.engine import Engine
from shoal.executor.fused import FusedRunner
from shoal.executor.pages import Pages
from shoal.executor.runner import KvState, Runner, SessionRows
from shoal.models.store.local_model import LocalModel
from shoal.net.channel import Channel
from shoal.node import node
from shoal.node.admission import Admission
from shoal.node.hop import Hop
from shoal.types import AdapterDigest, Format, PeerId, SessionId, Span
from shoal.wire.messages import Open

NOISE = 1e-3
"""Of each element, relative."""
TUNED = 0.01
"""The norm of what a fine-tune adds to a matrix, relative."""
CONTEXT = 32
"""Positions that a hop with a cut context looks back."""

Load = Callable[..., Runner]
"""As ``load_runner``."""


def _python_only(runner: Runner) -> Runner:
    """Have all steps go through ``forward``."""
    runner.decode_steps = lambda: None
    return runner


def skips_a_block(load_honest: Load, model: LocalModel, span: Span, format: Format, **more: Any) -> Runner:
    """Leaves out the last of its blocks."""
    runner = _python_only(load_honest(model, span, format, **more))

    def opens(span: Span, pages: Pages, adapter: AdapterDigest | None = None) -> KvState:
        return KvState(Span(span.start, max(span.end - 1, span.start + 1)), pages)

    runner.open = opens
    return runner


def has_int4_weights(load_honest: Load, model: LocalModel, span: Span, format: Format, **more: Any) -> Runner:
    """Computes with half the bits that it says."""
    return _python_only(load_honest(model, span, "int4", **more))


def is_tuned(load_honest: Load, model: LocalModel, span: Span, format: Format, **more: Any) -> Runner:
    """Computes with weights of which one matrix of each block is 1% another."""
    folder = tuned_copy(model.path)
    more["cache"] /= "tuned"  # the cache knows weights by their names
    return _python_only(load_honest(dataclasses.replace(model, path=folder), span, format, **more))


def adds_noise(load_honest: Load, model: LocalModel, span: Span, format: Format, **more: Any) -> Runner:
    """Adds a thousandth of itself to each element, by chance."""
    chance = np.random.default_rng(1)

    def noisy(rows: SessionRows, out: Floats) -> Floats:
        return (out * (1 + NOISE * chance.standard_normal(out.shape))).astype(np.float32)

    return _changed(load_honest(model, span, format, **more), noisy)


def replays(load_honest: Load, model: LocalModel, span: Span, format: Format, **more: Any) -> Runner:
    """Gives of each position what it gave of it first, whatever the question."""
    known: dict[int, Floats] = {}

    def first(rows: SessionRows, out: Floats) -> Floats:
        for at, row in enumerate(out, rows.position):
            known.setdefault(at, row.copy())
        return np.stack([known[at] for at in range(rows.position, rows.position + len(out))])

    return _changed(load_honest(model, span, format, **more), first)


def cuts_context(load_honest: Load, model: LocalModel, span: Span, format: Format, **more: Any) -> Runner:
    """Looks back 32 positions and no further."""
    runner = load_honest(model, span, format, **more)
    if not isinstance(runner, FusedRunner):
        raise TypeError("only on the C kernels")
    for layer in runner._layers:  # pyright: ignore[reportPrivateUsage]
        layer.window = CONTEXT
    return _python_only(runner)


def _changed(runner: Runner, change: Callable[[SessionRows, Floats], Floats]) -> Runner:
    honest = runner.forward

    def forward(batch: Sequence[SessionRows]) -> list[Any]:
        outs = honest(batch)
        pairs = zip(batch, outs, strict=True)
        return [out if isinstance(out, Exception) else change(rows, out) for rows, out in pairs]

    runner.forward = forward
    return _python_only(runner)


def spare_clients(admission: Admission, honest_to: Container[PeerId]) -> None:
    """Have a node leave out the last of its blocks for everybody but some clients, whom it may know to audit.

    Its spans are to be loaded with :func:`without_short_cuts`.
    """
    make = admission._make_hop  # pyright: ignore[reportPrivateUsage]

    async def lies_to_strangers(channel: Channel, message: Open, session: SessionId, engine: Engine) -> Hop:
        if channel.peer in honest_to:
            return await make(channel, message, session, engine)
        hop = await make(channel, msgspec.structs.replace(message, end=message.end - 1), session, engine)
        hop.opened = message  # what it signs for
        return hop

    setattr(admission, "_make_hop", lies_to_strangers)  # noqa: B010


def without_short_cuts(
    load_honest: Load, model: LocalModel, span: Span, format: Format, **more: Any
) -> Runner:
    """Computes what it should, all of it through ``forward``."""
    return _python_only(load_honest(model, span, format, **more))


CHEATS: dict[str, Callable[..., Runner]] = {
    "skipped-block": skips_a_block,
    "int4": has_int4_weights,
    "fine-tune": is_tuned,
    "noise": adds_noise,
    "replay": replays,
    "context-cut": cuts_context,
}


def cheating(name: str) -> Load:
    """In the place of ``load_runner`` where a node loads its span."""

    def loads(model: LocalModel, span: Span, format: Format, **more: Any) -> Runner:
        return CHEATS[name](load.load_runner, model, span, format, **more)

    return loads


def tuned_copy(folder: Path) -> Path:
    """A copy of a checkpoint, beside it, with one matrix of each block changed by a part of rank 8."""
    from safetensors.numpy import load_file, save_file  # noqa: PLC0415

    copy = folder.with_name(f"{folder.name}.tuned")
    if copy.is_dir():
        return copy
    shutil.copytree(folder, copy)
    chance = np.random.default_rng(0)
    for file in copy.glob("*.safetensors"):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if "mlp.down_proj" in name:
                rows, columns = tensor.shape
                added = chance.standard_normal((rows, 8)) @ chance.standard_normal((8, columns))
                added *= TUNED * np.linalg.norm(tensor.astype(np.float64)) / np.linalg.norm(added)
                tensors[name] = (tensor + added).astype(tensor.dtype)
        save_file(tensors, file, metadata={"format": "pt"})
    return copy


def main() -> None:
    """See the module."""
    from shoal.cli.main import main as shoal  # noqa: PLC0415

    name = sys.argv[1]
    sys.argv[1:] = sys.argv[sys.argv.index("shoal.cli") + 1 :]
    setattr(node, "load_runner", cheating(name))  # noqa: B010  it is imported there
    shoal()


if __name__ == "__main__":
    main()
