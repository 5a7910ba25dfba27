"""A span of blocks at work.

The ends and spans of a model, chained, give bit for bit what the whole model gives in transformers, as long
as both see the same tokens in the same pieces.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from shoal.errors import PositionGap, StepFailed, UsageError
from shoal.models.build import kv
from shoal.models.build.blocks import Blocks
from shoal.models.build.kv import Cache, KvCost
from shoal.models.build.placeholders import Reached, split_hidden
from shoal.models.build.rope import grid_rope, mrope_sections, sequence_ropes
from shoal.models.build.tensors import check_hidden, tensor_bytes
from shoal.models.checkpoint.mrope import Grids, check_grids
from shoal.models.checkpoint.multimodal import Stretches, check_stretches
from shoal.models.seam.config import PretrainedConfig
from shoal.models.seam.model import CACHE_NAMES, PreTrainedModel, accepted_inputs
from shoal.types import Kv, Span

PARTS = 4
"""Parts of a span that are kept ready; each takes no weights, only modules."""


class SpanModule:
    """Blocks ``[start, end)`` of a model. For one thread at a time."""

    stateless = False
    """Whether a forward is of a whole input, and keeps nothing for the next one."""
    boundary = 0
    """As :class:`shoal.executor.runner.Capabilities` has it."""

    def __init__(
        self,
        model: PreTrainedModel,
        blocks: Blocks,
        span: Span,
        config: PretrainedConfig,
        *,
        dtype: torch.dtype,
        device: torch.device,
        self_check: Callable[[SpanModule], KvCost],
        kv_as: Kv = "auto",
    ) -> None:
        """
        Args:
            self_check: proves that blocks stand alone, these and any part of them, and says what sessions
                cost; raises ``UnsupportedModel`` where they do not.
        """
        self.span = span
        self.width = int(config.hidden_size)
        """Elements of one token's hidden states."""
        # Told, not looked up: a model whose weights are all packed has no parameter to look at, and the first
        # parameter of one that keeps some in float32 says nothing of its hidden states.
        self.dtype = dtype
        self.device = device
        self.model = model
        self.blocks = blocks
        self.tensor_bytes = tensor_bytes(model)
        """Bytes of the span's weights in memory."""
        self.kv_cost = KvCost(())
        """What sessions cost; nothing until :meth:`prove` has measured it."""
        self._self_check = self_check
        self._config = config
        self._kv_as: Kv = kv_as
        self._accepts = accepted_inputs(model.base_model)
        self._entering: torch.Tensor | None = None
        self._ropes = sequence_ropes(model)
        self._sections = mrope_sections(config)
        self._grid_rope = None if self._sections is None else grid_rope(model, self._sections)
        self.list_name = next(name for name, module in model.named_modules() if module is blocks.modules)
        """What the model calls its list of blocks."""
        self._parts: OrderedDict[Span, SpanModule] = OrderedDict()
        blocks.modules[0].register_forward_pre_hook(self._enter, with_kwargs=True)
        blocks.modules[-1].register_forward_hook(_leave)

    def layer(self, block: int, name: str) -> nn.Module | None:
        """A module inside of a block, both as the whole model calls them; ``None`` where there is none."""
        try:
            return self.blocks.modules[block - self.span.start].get_submodule(name)
        except (AttributeError, IndexError):
            return None

    def prove(self) -> None:
        """Prove that the blocks stand alone, and measure what sessions cost.

        Raises:
            UnsupportedModel: they do not.
        """
        self.kv_cost = self._self_check(self)

    @torch.inference_mode()
    def forward(
        self,
        hidden: torch.Tensor,
        cache: Cache,
        position: int,
        sequence_length: int = 0,
        mutual: Stretches = (),
        grids: Grids = (),
    ) -> torch.Tensor:
        """What the next block, or the head, receives for tokens ``[position, position + n)``.

        Args:
            hidden: ``[1, n, width]`` in the span's dtype, what the block before gave, or the embedding.
            cache: holds the tokens before ``position``; one that holds more is cropped first.
            sequence_length: tokens of the sequence that these are a piece of, where it goes on behind them:
                some models' rotary frequencies depend on it (:mod:`shoal.models.build.rope_scaling`).
            mutual: which of these tokens see each other, and not only those before.
            grids: pictures that begin before their end, by which tokens have three positions.

        Raises:
            PositionGap: the cache holds fewer tokens than ``position``.
            CannotRollBack: it holds more and cannot forget them.
            StepFailed: ``hidden`` has another shape or dtype; or :meth:`check_told`.
            RuntimeError: torch's own faults, out of memory among them; crop the cache before going on.
        """
        check_hidden(hidden, self.width, self.dtype)
        self.check_told(mutual, grids)
        if position > cache.length:
            raise PositionGap(f"a step at position {position}, but only {cache.length} tokens are cached")
        if position < cache.length or cache.torn:
            self.crop(cache, position)
        end = position + hidden.shape[1]
        sequence_length = max(sequence_length, end)
        at_once = 1 if position and kv.goes_on_one_by_one(self._config, cache.states, self.span) else end
        cache.torn = True
        outs: list[torch.Tensor] = []
        for rows in hidden.to(self.device).split(at_once, 1):
            outs.append(self._run(rows, cache, position, sequence_length, mutual, grids))
            position += rows.shape[1]
        cache.length, cache.torn = end, False
        return outs[0] if len(outs) == 1 else torch.cat(outs, 1)

    def check_told(self, mutual: Stretches, grids: Grids) -> None:
        """Raises StepFailed: tokens are to see each other or have three positions, as none of this model."""
        check_stretches(self._config.model_type, mutual)
        check_grids(self._sections, grids)

    def run_whole(self, hidden: torch.Tensor) -> torch.Tensor:
        """What comes out for a sequence that is here as a whole: nothing is cached, and gradients go through.

        Args:
            hidden: ``[1, n, width]`` in the span's dtype.
        """
        check_hidden(hidden, self.width, self.dtype)
        for rope in self._ropes:
            rope.ahead = 0
        if self._grid_rope is not None:
            self._grid_rope.place(0, hidden.shape[1], ())
        positions = torch.arange(hidden.shape[1], device=self.device)
        offered: dict[str, object] = {
            "inputs_embeds": hidden,
            "position_ids": positions[None],
            "cache_position": positions,
            "use_cache": False,
        }
        return self._through(hidden, offered)

    def new_cache(self) -> Cache:
        """An empty cache for one session."""
        return Cache(kv.new_states(self._config, self.span, self._kv_as))

    def probe_cache(self) -> Cache:
        """A cache as the first token of a session finds it, for the self-check."""
        return self.new_cache()

    def crop(self, cache: Cache, length: int) -> None:
        """Forget the tokens from position ``length`` on. Forgetting all of them is always possible.

        Raises:
            PositionGap: the cache holds fewer.
            CannotRollBack: a sliding window or a recurrent state cannot go back to there.
        """
        if length > cache.length:
            raise PositionGap(f"cannot crop to {length}, only {cache.length} tokens are cached")
        if length == 0:
            fresh = self.new_cache()
            cache.states, cache.length, cache.torn = fresh.states, 0, False
        else:
            kv.crop(cache, length, self.span)

    @property
    def rolls_back(self) -> bool:
        """Whether :meth:`crop` can go back to any position."""
        return kv.rolls_back(self.new_cache().states, self.span)

    def cache_length(self, cache: Cache) -> int:
        """Tokens that the cache holds."""
        return cache.length

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of cache that a session of ``tokens`` tokens takes; sliding windows stop growing."""
        return self.kv_cost.bytes(tokens)

    def part(self, span: Span) -> SpanModule:
        """Some of these blocks as a span of their own, on the same weights. The last few parts are kept.

        Raises:
            UsageError: ``span`` is not inside of this one.
        """
        if span == self.span:
            return self
        if span.start < self.span.start or span.end > self.span.end:
            raise UsageError(f"blocks {span} are not inside of {self.span}")
        if span not in self._parts:
            self._parts[span] = self._share(span)
        self._parts.move_to_end(span)
        while len(self._parts) > PARTS:
            self._parts.popitem(last=False)
        return self._parts[span]

    def _share(self, span: Span) -> SpanModule:
        weights = (*self.model.parameters(), *self.model.buffers())
        memo: dict[int, Any] = {id(tensor): tensor for tensor in weights}
        memo[id(self)] = self  # the hooks of ours that are copied along are taken off below
        model, blocks = copy.deepcopy((self.model, self.blocks), memo)
        start, end = span.start - self.span.start, span.end - self.span.start
        kept = nn.ModuleList(list(blocks.modules)[start:end])
        for block in kept:
            block._forward_pre_hooks.clear()  # pyright: ignore[reportPrivateUsage]
            block._forward_pre_hooks_with_kwargs.clear()  # pyright: ignore[reportPrivateUsage]
            block._forward_hooks.clear()  # pyright: ignore[reportPrivateUsage]
        blocks.replace(kept, span.start)
        module = type(self)(
            model,
            blocks,
            span,
            self._config,
            dtype=self.dtype,
            device=self.device,
            self_check=self._self_check,
            kv_as=self._kv_as,
        )
        module.prove()
        return module

    def _run(
        self,
        hidden: torch.Tensor,
        cache: Cache,
        position: int,
        sequence_length: int,
        mutual: Stretches = (),
        grids: Grids = (),
    ) -> torch.Tensor:
        n = hidden.shape[1]
        for rope in self._ropes:
            rope.ahead = sequence_length if sequence_length > position + n else 0
        if self._grid_rope is not None:
            self._grid_rope.place(position, n, grids)
        positions = torch.arange(position, position + n, device=self.device)
        offered = self._inputs(hidden, cache, positions)
        if mutual:
            from shoal.models.seam.vision import mutual_masks  # noqa: PLC0415 - one family alone has them

            offered["attention_mask"] = mutual_masks(
                self.model.config, hidden, cache.states, positions, mutual
            )
        return self._through(hidden, offered)

    def _through(self, hidden: torch.Tensor, offered: dict[str, object]) -> torch.Tensor:
        """What the blocks make of ``hidden``, in a forward that is given what it takes of ``offered``."""
        self._entering = hidden
        try:
            self.model.base_model(**{name: offered[name] for name in self._accepts & offered.keys()})
        except Reached as reached:
            return reached.hidden
        finally:
            self._entering = None
        raise StepFailed("the forward did not pass through the span's blocks")

    def _inputs(self, hidden: torch.Tensor, cache: Cache, positions: torch.Tensor) -> dict[str, object]:
        """What the model's forward is given, as far as it takes it."""
        return {
            "inputs_embeds": hidden,
            "position_ids": positions[None],
            "cache_position": positions,
            "use_cache": True,
            **dict.fromkeys(CACHE_NAMES, cache.states),
        }

    def _enter(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give the first block what came over the wire, whatever the model made of it on the way here."""
        split_hidden(args, kwargs)
        if args:
            return (self._entering, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": self._entering}


def _leave(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    raise Reached(output[0] if isinstance(output, tuple) else output)
