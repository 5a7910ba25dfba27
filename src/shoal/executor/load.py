"""From a model's files to parts that run: on the kernels where they fit its shape, else on its modules."""

from __future__ import annotations

from pathlib import Path

import torch

from shoal.executor.ends import Ends, ModuleEnds, load_fused_ends
from shoal.executor.fused import FusedRunner, expected_names, load_fused
from shoal.executor.kernels import Team, library
from shoal.executor.packed import load_packed
from shoal.executor.pages import PagePool, pages_for
from shoal.executor.parallel import load_parallel
from shoal.executor.runner import ModuleRunner, Runner
from shoal.executor.shape import LlamaShape, llama_shape
from shoal.executor.shelf import Shelf
from shoal.models.checkpoint import Checkpoint, open_checkpoint
from shoal.models.hollow import read_model_config
from shoal.models.kv import Kv
from shoal.models.local import LocalModel
from shoal.models.span import load_ends as load_module_ends
from shoal.types import Format, Span


def fused_shape(checkpoint: Checkpoint, span: Span, format: Format) -> LlamaShape | None:
    """The shape in which the kernels run these blocks; ``None`` when the model's own modules must.

    fp32 stays with the modules: it is the format that is exact bit for bit.
    """
    if format == "fp32" or library() is None:
        return None
    shape = llama_shape(read_model_config(checkpoint))
    if shape is None or span.end > len(shape.windows):
        return None
    whole = all(expected_names(shape, checkpoint, block) for block in range(span.start, span.end))
    return shape if whole else None


def load_runner(
    model: LocalModel, span: Span, format: Format, *, kv: Kv, threads: int, cache: Path, parallel: int = 1
) -> Runner:
    """Build ``span`` of a model with its weights in ``format``.

    Args:
        kv: how keys and values are kept.
        threads: of a forward; 0 takes as many as torch does.
        cache: where packed weights are kept for the next start.
        parallel: how many processes compute the span; more than one must be ``watched``.

    Raises:
        UsageError: the span goes beyond the model's blocks.
        BadWeights: tensors are missing, damaged or of another shape.
        UnsupportedModel: the model cannot be served in spans, or not in this format.
        More, with several processes: see :func:`shoal.executor.parallel.load_parallel`.
    """
    if parallel > 1:
        threads = threads or torch.get_num_threads()
        return ModuleRunner(load_parallel(model, span, format, kv=kv, ranks=parallel, threads=threads))
    checkpoint = open_checkpoint(model.path)
    shape = fused_shape(checkpoint, span, format)
    team = _team(format, threads)
    if shape is None or team is None:
        return ModuleRunner(load_packed(model, span, format, team=team, kv=kv))
    shelf = Shelf(cache, model.digest, format)
    return load_fused(checkpoint, shape, span, format, kv=kv, team=team, shelf=shelf)


def load_ends(model: LocalModel, format: Format, *, threads: int, cache: Path) -> Ends:
    """Build the embedding and the head of a model. Arguments and errors are those of :func:`load_runner`."""
    checkpoint = open_checkpoint(model.path)
    shape = fused_shape(checkpoint, Span(0, model.shape.n_blocks), format)
    team = _team(format, threads)
    if shape is None or team is None:
        return ModuleEnds(load_module_ends(model))
    shelf = Shelf(cache, model.digest, format)
    return load_fused_ends(checkpoint, shape, format, context=model.shape.context, team=team, shelf=shelf)


def _team(format: Format, threads: int) -> Team | None:
    """Threads for the kernels, where these are wanted and built."""
    if format == "fp32" or library() is None:
        return None
    return Team(threads or torch.get_num_threads())


def make_pool(runner: Runner, tokens: int) -> PagePool:
    """Pages for at least ``tokens`` tokens of a runner's KV."""
    pages = pages_for(tokens)
    if isinstance(runner, FusedRunner):
        pool = PagePool(pages, runner.page_bytes)
        runner.use(pool)
        return pool
    return PagePool(pages)
