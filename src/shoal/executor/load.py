"""From a model's files to parts that run: on the kernels where they fit its shape, else on its modules.

The modules stand on torch and transformers, which take seconds to import: that is done where they are needed.
"""

from __future__ import annotations

import logging
from pathlib import Path

from shoal.executor.cores import usable_cores
from shoal.executor.device.device import CPU
from shoal.executor.ends import EMBEDDING, HEAD, NORM, EndsRunner, FusedEnds, read_ends
from shoal.executor.fused import FusedRunner
from shoal.executor.kernels.c_kernels import ThreadTeam, library
from shoal.executor.runner import Runner
from shoal.executor.shape import LlamaShape, llama_shape
from shoal.executor.weights.llama_blocks import expected_names, prefix_of, read_layers
from shoal.executor.weights.tensors import is_readable
from shoal.executor.weights.weight_cache import WeightCache
from shoal.models.checkpoint.checkpoint import Checkpoint, open_checkpoint
from shoal.models.checkpoint.headers import ITEM_SIZE
from shoal.models.checkpoint.published import grouping_of, is_mostly_grouped
from shoal.models.store.local_model import LocalModel
from shoal.types import Format, Kernels, Kv, Span

log = logging.getLogger(__name__)


def fused_shape(checkpoint: Checkpoint, span: Span, format: Format) -> LlamaShape | None:
    """The shape in which the kernels run these blocks; ``None`` when the model's own modules must.

    fp32 stays with the modules: it is the format that is exact bit for bit.
    """
    return None if format == "fp32" or library() is None else span_shape(checkpoint, span)


def span_shape(checkpoint: Checkpoint, span: Span) -> LlamaShape | None:
    """The shape of these blocks; ``None`` when they are not of Llama's in every respect."""
    shape = llama_shape(checkpoint.config)
    if shape is None or span.end > len(shape.windows):
        return None
    whole = all(expected_names(shape, checkpoint, block) for block in range(span.start, span.end))
    return shape if whole and all(map(is_readable, checkpoint.tensors.values())) else None


def holds_published(model: LocalModel) -> bool:
    """Whether most weights of a model were published as integers that its blocks can be run with.

    Raises:
        BadWeights, UnsupportedModel: see ``open_checkpoint``.
    """
    if model.dtype in ITEM_SIZE:
        return False
    checkpoint = open_checkpoint(model.path)
    shape = span_shape(checkpoint, Span(0, model.shape.n_blocks))
    return shape is not None and is_mostly_grouped(checkpoint.tensors.values())


def load_runner(
    model: LocalModel,
    span: Span,
    format: Format,
    *,
    kv: Kv,
    threads: int,
    cache: Path,
    parallel: int = 1,
    device: str = CPU,
    kernels: Kernels = "auto",
) -> Runner:
    """Build ``span`` of a model with its weights in ``format``. On the thread that is to run it.

    Args:
        kv: how keys and values are kept.
        device: where, as :func:`shoal.executor.device.find.find_device` names it.
        threads: of a forward; 0 takes as many as there are cores.
        cache: where packed weights are kept for the next start.
        kernels: ``torch`` computes Llama's shape on the CPU as on an accelerator.
        parallel: how many processes compute the span; more than one must be :meth:`~Runner.watched`.

    Raises:
        UsageError: the span goes beyond the model's blocks.
        BadWeights: tensors are missing, damaged or of another shape.
        UnsupportedModel: the model cannot be served in spans, or not in this format.
        More, with several processes: see :func:`shoal.executor.parallel.span.load_parallel`.
    """
    if parallel > 1:
        from shoal.executor.parallel.span import load_ranks  # noqa: PLC0415

        return load_ranks(model, span, format, kv=kv, ranks=parallel, threads=threads, device=device)
    checkpoint = open_checkpoint(model.path)
    by_torch = device != CPU or kernels == "torch"
    shape = span_shape(checkpoint, span) if by_torch else fused_shape(checkpoint, span, format)
    if shape is None:
        from shoal.executor.modules import load_modules  # noqa: PLC0415

        return load_modules(model, span, format, kv=kv, threads=threads, device=device, kernels=kernels)
    weight_cache = WeightCache(cache, model.digest, format)
    if format == "published":
        _tell_rounded(checkpoint, span)
    layers = read_layers(checkpoint, shape, span, format, weight_cache)
    if by_torch:
        import torch  # noqa: PLC0415

        from shoal.executor.device.runner import load_device_runner  # noqa: PLC0415

        torch.set_num_threads(threads or usable_cores())
        return load_device_runner(layers, shape, span, format, kv=kv, device=torch.device(device))
    return FusedRunner(shape, span, list(layers), ThreadTeam(threads or usable_cores()), kv)


def _tell_rounded(checkpoint: Checkpoint, span: Span) -> None:
    """Say which types of the blocks' matrices are not held as published."""
    prefixes = tuple(prefix_of(block) for block in range(span.start, span.end))
    matrices = [e for e in checkpoint.tensors.values() if e.name.startswith(prefixes) and len(e.shape) == 2]
    types = sorted({entry.dtype for entry in matrices if grouping_of(entry) is None} - {"BF16"})
    if types:
        log.warning("blocks %s: matrices in %s are rounded to bf16", span, ", ".join(types))


def load_ends_runner(
    model: LocalModel,
    format: Format,
    *,
    threads: int,
    cache: Path,
    device: str = CPU,
    kernels: Kernels = "auto",
) -> EndsRunner:
    """Build the embedding and the head of a model. Arguments and errors are those of :func:`load_runner`."""
    checkpoint = open_checkpoint(model.path)
    whole = Span(0, model.shape.n_blocks)
    by_torch = device != CPU or kernels == "torch"
    shape = span_shape(checkpoint, whole) if by_torch else fused_shape(checkpoint, whole, format)
    if shape is None or not _ends_fit(shape, checkpoint):
        from shoal.executor.modules import load_module_ends  # noqa: PLC0415

        return load_module_ends(model, device)
    weight_cache = WeightCache(cache, model.digest, format)
    weights = read_ends(checkpoint, shape, format, context=model.shape.context, weight_cache=weight_cache)
    if by_torch:
        import torch  # noqa: PLC0415

        from shoal.executor.device.ends import load_device_ends  # noqa: PLC0415

        torch.set_num_threads(threads or usable_cores())
        return load_device_ends(shape, weights, torch.device(device))
    return FusedEnds(shape, weights, ThreadTeam(threads or usable_cores()))


def _ends_fit(shape: LlamaShape, checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint has the ends of the shape: a head of its own unless the config ties it."""
    head = () if shape.tied else (f"{HEAD}.weight",)
    return {EMBEDDING, NORM, *head} <= checkpoint.tensors.keys() and f"{HEAD}.bias" not in checkpoint.tensors
