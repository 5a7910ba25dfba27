"""The ends of a model of Llama's shape, with the head on a device. The embedding stays in its file."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional

from shoal.errors import ShoalError
from shoal.executor.arrays import Floats, join, split
from shoal.executor.batcher import ForwardOutput
from shoal.executor.device.products import Products, find_products, place_matrix
from shoal.executor.device.runner import received, send
from shoal.executor.device.torch_devices import shortage, too_small
from shoal.executor.ends import EndsWeights
from shoal.executor.shape import LlamaShape
from shoal.models.build.rope_scaling import RopeScaling
from shoal.types import Exactness


class DeviceEnds:
    """The embedding, and the head on a device."""

    sliced = True
    bits: Exactness = "torch"
    stateless = False
    encoder = None
    rope_scaling = RopeScaling()
    """Frequencies that change are not of the shape."""

    def __init__(
        self, shape: LlamaShape, weights: EndsWeights, device: torch.device, products: Products
    ) -> None:
        self._shape = shape
        self._embedding = weights.embedding
        self._device = device
        self._norm = torch.from_numpy(weights.norm).to(device)
        self._head = place_matrix(weights.head, device, products)
        self.tensor_bytes = self._head.bytes + self._norm.nbytes

    def embed(self, token_ids: Sequence[int], position: int) -> Floats:
        return self._embedding.rows(token_ids, position)

    def heads(self, batch: Sequence[Floats]) -> list[ForwardOutput]:
        logits = self._run(self._logits, join(batch))
        if isinstance(logits, ShoalError):
            return [logits] * len(batch)
        return [*split(logits, [len(hidden) for hidden in batch])]

    def decode_steps(self) -> None:
        return None

    def last_hidden(self, hidden: Floats) -> ForwardOutput:
        return self._run(lambda rows: received(self._normed(rows)), hidden)

    @torch.inference_mode()
    def _run(self, compute: Callable[[Floats], Floats], rows: Floats) -> ForwardOutput:
        try:
            return compute(rows)
        except RuntimeError as error:
            if (busy := shortage(error, str(self._device))) is None:
                raise
            return busy

    def _logits(self, rows: Floats) -> Floats:
        return received(self._head.multiply(self._normed(rows)).float() / self._shape.logits)

    def _normed(self, rows: Floats) -> torch.Tensor:
        hidden = send(torch.from_numpy(np.ascontiguousarray(rows)), self._device)
        return functional.rms_norm(hidden, self._norm.shape, self._norm, self._shape.epsilon)


def load_device_ends(shape: LlamaShape, weights: EndsWeights, device: torch.device) -> DeviceEnds:
    """Bring the head to a device.

    Raises:
        OutOfResources: it has no room for it.
    """
    products = Products() if weights.head.scales is None else find_products(device)
    try:
        return DeviceEnds(shape, weights, device, products)
    except RuntimeError as error:
        raise too_small(error, device, "the head") from error
