"""Spans of Llama's shape on any device of torch's: rows of many sessions in one forward, their KV in pages.

Nothing waits for the device within a forward: hidden states and integers go there, and what comes out is
copied back once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from shoal.errors import StepFailed
from shoal.executor.arrays import Floats, join, split
from shoal.executor.batcher import ForwardOutput
from shoal.executor.device.adapters import DeviceAdapter, adapted_rows, place_adapter, with_adapters
from shoal.executor.device.blocks import DeviceLayer, Inputs, place_layer, run_layer, turn_rows
from shoal.executor.device.kv import DeviceKv, SeenPages, kv_token_bytes, see_pages
from shoal.executor.device.plan import ForwardPlan, Integers, plan_forward
from shoal.executor.device.products import Products, compute_dtype, find_products
from shoal.executor.device.torch_devices import shortage, too_small
from shoal.executor.pages import PagePool, pages_for
from shoal.executor.runner import Capabilities, PagedRunner, SessionRows
from shoal.executor.shape import LlamaShape
from shoal.executor.weights.llama_blocks import LayerWeights
from shoal.models.adapters.adapter import Adapter
from shoal.types import Exactness, Format, Kv, Span


class DeviceRunner(PagedRunner):
    """Blocks ``[start, end)`` of a model of Llama's shape on a device, and every session's KV in them."""

    capabilities = Capabilities(batch=True, roll_back=True, exact=False)
    bits: Exactness = "torch"

    def __init__(
        self,
        shape: LlamaShape,
        span: Span,
        layers: Sequence[DeviceLayer],
        format: Format,
        kv: Kv,
        device: torch.device,
    ) -> None:
        super().__init__(shape.family, shape.sections)
        self._adapters: list[DeviceAdapter] = []
        self.span = span
        self.width = shape.hidden
        self.device = device
        self.tensor_bytes = sum(layer.bytes for layer in layers)
        self._shape = shape
        self._layers = layers
        self._dtype = compute_dtype(format)
        self._kv_format: Kv = kv
        self.kv_bytes = float(len(span) * kv_token_bytes(shape, kv, self._dtype))
        self.kv: DeviceKv | None = None
        """Where KV lies, once :meth:`make_pool` has made it."""
        self._windows = list(dict.fromkeys(shape.windows[span.start : span.end]))
        self._axes = torch.from_numpy(shape.axes.astype(np.int64)).to(device)
        self._frequencies = [torch.from_numpy(rope.frequencies).to(device) for rope in shape.ropes]

    def load_adapters(self, adapters: Sequence[Adapter]) -> None:
        self._adapters = [place_adapter(a, self._shape, self.span, self.device) for a in adapters]
        self.numbers.take(adapters)
        self.tensor_bytes += sum(adapter.bytes for adapter in self._adapters)

    def make_pool(self, tokens: int) -> PagePool:
        """Memory of the device for at least ``tokens`` tokens of KV.

        Raises:
            OutOfResources: it has no room for them.
        """
        pages = pages_for(tokens)
        try:
            self.kv = DeviceKv(self._shape, len(self.span), pages, self._kv_format, self._dtype, self.device)
        except RuntimeError as error:
            raise too_small(error, self.device, f"{tokens} tokens of KV") from error
        return PagePool(pages)

    def _run(self, span: Span, batch: Sequence[SessionRows]) -> list[ForwardOutput]:
        if self.kv is None:
            return [StepFailed("a forward before there are pages")] * len(batch)
        plan = plan_forward(batch, self._windows)
        ordered = [batch[i] for i in plan.order]
        try:
            out = self._compute(span, plan, ordered, self.kv)
        except RuntimeError as error:
            return self._failed(span, batch, error)
        outs: dict[int, ForwardOutput] = {}
        parts = split(out, [len(rows.hidden) for rows in ordered])
        for place, rows, part in zip(plan.order, ordered, parts, strict=True):
            rows.state.length = rows.position + len(rows.hidden)
            outs[place] = part
        return [outs[place] for place in range(len(batch))]

    def _failed(self, span: Span, batch: Sequence[SessionRows], error: RuntimeError) -> list[ForwardOutput]:
        """Memory is short: half as many rows at a time may do, and else these sessions' rows are refused.

        Nothing that has been written counts: what is cached is said by the lengths, which stay.
        """
        if (busy := shortage(error, str(self.device))) is None:
            raise error
        if len(batch) == 1:
            return [busy]
        half = len(batch) // 2
        return [*self._run(span, batch[:half]), *self._run(span, batch[half:])]

    @torch.inference_mode()
    def _compute(self, span: Span, plan: ForwardPlan, batch: Sequence[SessionRows], kv: DeviceKv) -> Floats:
        """float32 ``[rows, width]``, of the batch's rows in its order."""
        joined = np.ascontiguousarray(join([rows.hidden for rows in batch]))
        hidden = send(torch.from_numpy(joined), self.device)
        inputs = self._inputs(plan, kv)
        adapted = adapted_rows(self._adapters, batch, self.device)
        for number in range(span.start - self.span.start, span.end - self.span.start):
            layer = with_adapters(self._layers[number], adapted, self.span.start + number)
            hidden = run_layer(layer, self._shape, hidden, inputs, kv, number, self._dtype)
        return received(hidden)

    def _inputs(self, plan: ForwardPlan, kv: DeviceKv) -> Inputs:
        arrays = [plan.positions, plan.ends, plan.slots, plan.unused, plan.rotary_positions]
        for group in plan.groups:
            for window in self._windows:
                arrays += [group.views[window].table, group.views[window].first]
        tensors = iter(send_together(arrays, self.device))
        positions, ends, slots, unused, turning = (next(tensors) for _ in range(5))
        if len(unused):
            kv.clear(unused)
        groups = {window: list[SeenPages]() for window in self._windows}
        for group in plan.groups:
            for window in self._windows:
                pages = next(tensors), next(tensors)
                seen = see_pages(group.start, group.rows, positions, ends, *pages, window)
                groups[window].append(seen)
        ropes = zip(self._frequencies, self._shape.ropes, strict=True)
        by_pair = turning.index_select(1, self._axes) if turning.ndim > 1 else turning.unsqueeze(1)
        return Inputs(slots, [turn_rows(by_pair, f, rope) for f, rope in ropes], groups)


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the device. CUDA has read what it copies when the call returns, so there nobody waits for more."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def send_together(arrays: Sequence[Integers], device: torch.device) -> list[torch.Tensor]:
    """Arrays on the device, by one copy."""
    sent = send(torch.from_numpy(np.concatenate([array.reshape(-1) for array in arrays])), device)
    parts = sent.split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def received(tensor: torch.Tensor) -> Floats:
    """What a device has computed, once it has: this waits for it."""
    return tensor.cpu().numpy()


def load_device_runner(
    layers: Iterable[LayerWeights],
    shape: LlamaShape,
    span: Span,
    format: Format,
    *,
    kv: Kv,
    device: torch.device,
) -> DeviceRunner:
    """Bring the blocks of ``span`` to a device, one after another.

    Raises:
        OutOfResources: it has no room for them.
        BadWeights: a tensor is missing or has another shape.
    """
    placed: list[DeviceLayer] = []
    products = Products() if format in ("fp32", "bf16") else find_products(device)
    try:
        for block, weights in enumerate(layers, span.start):
            placed.append(place_layer(weights, shape, block, device, products))
        return DeviceRunner(shape, span, placed, format, kv, device)
    except RuntimeError as error:
        raise too_small(error, device, f"blocks {span} in {format}") from error
