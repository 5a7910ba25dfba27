"""Opens a run of tuning: the model's ends and tokenizer here, the data read, nodes that train found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from shoal.client.swarm import Swarm
from shoal.client.tuning.blocks import TuningBlocks
from shoal.client.tuning.data import Example, Skipped, read_examples
from shoal.client.tuning.ends import TuningEnds
from shoal.client.tuning.factors import TunedAdapter, TunedLayers
from shoal.client.tuning.own_blocks import OwnBlocks, load_own_blocks
from shoal.client.tuning.remote import RemoteBlocks
from shoal.client.tuning.tuned import Tuned
from shoal.client.tuning.tuner import Tuner, TuningOptions
from shoal.client.tuning.virtual_tokens import TunedPrompt, drawn_tokens
from shoal.config import Settings
from shoal.errors import UnsupportedModel, UsageError
from shoal.executor.thread import ComputeThread
from shoal.models.build.ends import EndsModule
from shoal.models.build.linear_layers import linear_layers
from shoal.models.build.load import load_ends_module
from shoal.models.store.local_model import LocalModel

STEP_S = 120.0
"""What one hop may take for one question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningData:
    """Where examples come from."""

    path: Path
    evaluation: Path | None = None
    """Examples that are kept back, whose loss is looked at now and then."""
    longest: int = 0
    """Tokens of an example; 0: as many as the model's context, and 2,048 at most."""
    cut: bool = False
    """Cut longer ones, instead of refusing them."""
    skipped: Skipped | None = None
    """Told of lines that are left out; ``None`` refuses the file for the first one."""


async def open_tuner(
    swarm: Swarm,
    model: str,
    data: TuningData | None,
    options: TuningOptions,
    folder: Path,
    *,
    own_blocks: bool = False,
) -> Tuner:
    """A run that tunes an adapter of ``model``, or a soft prompt, through the swarm, into ``folder``. To be
    closed in the end.

    Args:
        data: ``None`` for examples that are made as it goes on (:meth:`Tuner.learn`).
        own_blocks: run all blocks on this machine, in float32: no node is asked.

    Raises:
        UsageError: the data, an option or a setting of the swarm cannot be used.
        UnsupportedModel: the model is no decoder.
        UnknownModel, BadWeights: its ends cannot be loaded here.
    """
    if not own_blocks:
        check_settings(swarm.settings)
    local = await swarm.resolve(model)
    if local.shape.adapter is not None or local.soft_prompt is not None:
        raise UsageError(
            f"{local.name} has an adapter or a soft prompt already",
            check="tune the model itself, without a name behind it",
        )
    beside = options.prompt_tokens if options.method == "prompt" else 0
    examples, held_back = ([], []) if data is None else await _read(swarm, local, data, beside)
    thread = ComputeThread("shoal-tuning")
    try:
        adapter, tuned, ends = await thread.run(partial(_load, local, options))
        blocks: TuningBlocks
        if own_blocks:
            await swarm.weights.fetch_all(local)
            module = await thread.run(partial(load_own_blocks, local))
            blocks = OwnBlocks(module, local.shape, adapter, thread)
        else:
            resume_s = swarm.settings.resume_s
            blocks = RemoteBlocks(swarm.rings, local.shape, adapter, within_s=STEP_S, resume_s=resume_s)
        return Tuner(local, tuned, blocks, ends, thread, examples, held_back, options, folder)
    except BaseException:
        thread.close()
        raise


async def _read(
    swarm: Swarm, local: LocalModel, data: TuningData, beside: int
) -> tuple[list[Example], list[Example]]:
    """The examples to learn from, and those kept back. Raises as :func:`open_tuner`.

    Args:
        beside: positions that each takes beside its tokens.
    """
    codec = await swarm.codec(local, needed=True)
    if codec is None:
        raise UsageError(f"{local.name} has no tokenizer")
    end = await trio.to_thread.run_sync(lambda: codec.answer_end)
    longest = data.longest or min(local.shape.context, 2048) - beside
    if not 0 < longest <= local.shape.context - beside:
        raise UsageError(
            f"examples of {longest} tokens: {local.name} takes {local.shape.context - beside}"
            + (f" beside {beside} virtual ones" if beside else ""),
            check="lower --longest",
        )
    read = partial(
        read_examples,
        codec=codec,
        longest=longest,
        end_token=end,
        cut=data.cut,
        skipped=data.skipped,
    )
    examples = await trio.to_thread.run_sync(partial(read, data.path))
    held_back: list[Example] = []
    if data.evaluation is not None:
        held_back = await trio.to_thread.run_sync(partial(read, data.evaluation))
    return examples, held_back


def check_settings(settings: Settings) -> None:
    """Refuse what keeps hidden states from some nodes and would not when an adapter is tuned.

    Raises:
        UsageError: nodes must show what they run on, or blocks are kept here.
    """
    if settings.attested:
        named = "attested_only" if settings.attested_only else "protect = attested"
        raise UsageError(
            f"{named} is set, and tuning asks nodes that have not shown what they run on",
            check=f"tune without {named} if any node that trains may see hidden states and gradients",
        )
    if settings.own_blocks:
        raise UsageError(
            f"private_ends is {settings.private_ends}, and tuning runs no blocks here: nodes run them all",
            check="tune without private_ends if nodes may see what the first blocks are given",
        )


def _load(local: LocalModel, options: TuningOptions) -> tuple[TunedAdapter, Tuned, TuningEnds]:
    """The adapter that the blocks run with, what is tuned, and the ends."""
    list_name, sizes = linear_layers(local, options.layers)
    ends = load_ends_module(local)
    if type(ends) is not EndsModule:
        raise UnsupportedModel(f"{local.name} is no decoder: only those are tuned")
    n_blocks, seed = local.shape.n_blocks, options.seed
    if options.method == "lora":
        layers = TunedLayers(list_name, sizes, n_blocks)
        adapter = TunedAdapter(layers, rank=options.rank, alpha=options.alpha, seed=seed)
        return adapter, adapter, TuningEnds(ends)
    rows = ends.word_rows(drawn_tokens(options.prompt_tokens, ends.vocab_size, seed))
    none = TunedAdapter(TunedLayers(list_name, {}, n_blocks), rank=1, alpha=1.0, seed=seed)
    return none, TunedPrompt(rows.cpu(), n_blocks), TuningEnds(ends)
