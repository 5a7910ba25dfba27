"""A question of tuning (:mod:`shoal.wire.training`) as what is to be computed."""

from __future__ import annotations

import torch

from shoal.errors import RemoteProtocolError
from shoal.executor.training.train import TrainingLayer, TrainingWork
from shoal.wire.training import Train


def read_work(message: Train, payload: bytes, within_s: float) -> TrainingWork:
    """What a client asks for.

    Args:
        within_s: what computing it may take.

    Raises:
        RemoteProtocolError: numbers that are NaN or infinite.
    """
    # Copied: torch takes no memory that it may not write to, and what the layers get must be their own.
    numbers = torch.frombuffer(bytearray(payload), dtype=torch.float32)
    if not bool(numbers.isfinite().all()):
        raise RemoteProtocolError("a question of tuning with numbers that are NaN or infinite")
    elements = message.rows * message.width
    shape = (message.rows, message.width)
    behind = 2 * elements if message.backward else elements
    return TrainingWork(
        lengths=message.lengths,
        hidden=numbers[:elements].view(shape),
        gradients=numbers[elements:behind].view(shape) if message.backward else None,
        list_name=message.list_name,
        scale=message.scale,
        layers=_layers(message, numbers[behind:]),
        within_s=within_s,
    )


def _layers(message: Train, factors: torch.Tensor) -> list[TrainingLayer]:
    """The adapter's matrices: of each block in order, and of each layer, A and then B."""
    layers: list[TrainingLayer] = []
    at, rank = 0, message.rank
    for block in range(message.start, message.end):
        for layer in message.layers:
            down = factors[at : at + rank * layer.cols].view(rank, layer.cols).clone()
            at += rank * layer.cols
            up = factors[at : at + layer.rows * rank].view(layer.rows, rank).clone()
            at += layer.rows * rank
            layers.append(TrainingLayer(block, layer.name, down, up))
    return layers
