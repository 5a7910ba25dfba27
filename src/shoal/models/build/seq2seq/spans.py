"""Spans of a model with an encoder and a decoder.

A session over the decoder's blocks begins with a step that holds what the encoder gave, from position 0 on.
Each span keeps those rows until its blocks have made keys and values of them, with the first token that
comes, and passes them on as they are. So they go round the ring once, are sent again where a hop is lost, and
count as tokens of KV, as all else does. Tokens follow behind them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from shoal.errors import CannotRollBack, PositionGap, StepFailed, UnsupportedModel, UsageError
from shoal.models.build.blocks import Blocks
from shoal.models.build.encoder import EncoderSpan
from shoal.models.build.growing_kv import FloatRows, Int8Rows, RowsLayer
from shoal.models.build.kv import Cache, cache_layer_bytes, own_layers
from shoal.models.build.placeholders import Reached
from shoal.models.build.span import SpanModule
from shoal.models.build.tensors import check_hidden
from shoal.models.checkpoint.encoder_decoders import EncoderDecoder, encoder_decoder
from shoal.models.checkpoint.mrope import Grids
from shoal.models.checkpoint.multimodal import Stretches
from shoal.models.seam.cache import DynamicCache, DynamicLayer
from shoal.models.seam.config import PretrainedConfig
from shoal.models.seam.model import CACHE_NAMES, PreTrainedModel
from shoal.models.seam.seq2seq import EncoderDecoderCache, lend_bias
from shoal.types import Span

LENT_BIAS = "lent_bias"
"""Under this name a stack has the biases of its first block, for whichever is the first of a span."""
PROBE_ROWS = 3
"""Of what an encoder might give, for the self-check."""


class EncoderPart(EncoderSpan):
    """Blocks ``[start, end)`` of the encoder, counted from its first."""

    def __init__(
        self, model: PreTrainedModel, blocks: Blocks, span: Span, config: PretrainedConfig, **options: Any
    ) -> None:
        super().__init__(model, blocks, span, config, **options)
        self.shape = sides_of(config)
        _lend(model, blocks)

    @property
    def _longest(self) -> int:
        return most_rows(self.shape)

    def _run(
        self,
        hidden: torch.Tensor,
        cache: Cache,
        position: int,
        sequence_length: int,
        mutual: Stretches = (),
        grids: Grids = (),
    ) -> torch.Tensor:
        if self.shape.input == "text":
            return super()._run(hidden, cache, position, sequence_length)
        self._entering = hidden  # the stack's own forward begins with sound
        try:
            for block in self.blocks.modules:
                out: Any = block(hidden, None)
                hidden = out[0] if isinstance(out, tuple) else out
        except Reached as reached:
            return reached.hidden
        finally:
            self._entering = None
        raise StepFailed("the forward did not pass through the span's blocks")


@dataclass(slots=True)
class DecoderCache(Cache):
    """The keys and values of one session: of its tokens, ``states``, and of what the encoder gave."""

    both: EncoderDecoderCache | None = None
    rows: int = 0
    """That the encoder gave; tokens follow at this position."""
    given: torch.Tensor | None = None
    """Those rows, ``[1, rows, width]``, until all blocks have made keys and values of them."""


class DecoderPart(SpanModule):
    """Blocks ``[start, end)`` of the decoder, counted from its first."""

    def __init__(
        self, model: PreTrainedModel, blocks: Blocks, span: Span, config: PretrainedConfig, **options: Any
    ) -> None:
        super().__init__(model, blocks, span, config, **options)
        self.shape = sides_of(config)
        self.row_bytes = 0
        """Bytes of a row that the encoder gave, with its keys and values; :meth:`prove` measures it."""
        _lend(model, blocks)

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
        """As :meth:`SpanModule.forward`; from position 0 on, what the encoder gave, which comes out again.

        Raises:
            As there; StepFailed: the encoder cannot have given so much, or a token comes before it.
        """
        self.check_told(mutual, grids)
        mine = _mine(cache)
        if position:
            if position < mine.rows:
                raise CannotRollBack(f"no way back to position {position} of {mine.rows} rows of an encoder")
            return super().forward(hidden, cache, position)
        check_hidden(hidden, self.width, self.dtype)
        if hidden.shape[1] > (most := most_rows(self.shape)):
            raise StepFailed(f"{hidden.shape[1]} rows of an encoder that gives {most} at the most")
        self.crop(cache, 0)
        mine.given = hidden.to(self.device)
        mine.length = mine.rows = hidden.shape[1]
        return hidden

    def new_cache(self) -> Cache:
        kind = Int8Rows if self._kv_as == "int8" else FloatRows
        states, cross = DynamicCache(), DynamicCache()
        states.layers = self._by_index([RowsLayer(kind) for _ in range(len(self.span))])
        cross.layers = self._by_index([DynamicLayer() for _ in range(len(self.span))])
        return DecoderCache(states, both=EncoderDecoderCache(states, cross))

    def probe_cache(self) -> Cache:
        cache = self.new_cache()
        generator = torch.Generator().manual_seed(1)
        rows = torch.randn((1, PROBE_ROWS, self.width), generator=generator).to(self.dtype)
        self.forward(rows.to(self.device), cache, 0)
        return cache

    def crop(self, cache: Cache, length: int) -> None:
        """As :meth:`SpanModule.crop`; the rows of the encoder are forgotten all at once."""
        mine = _mine(cache)
        if length > mine.length:
            raise PositionGap(f"cannot crop to {length}, only {mine.length} tokens are cached")
        if 0 < length < mine.rows:
            raise CannotRollBack(f"no way back to position {length} of {mine.rows} rows of an encoder")
        if length == 0 or (length == mine.rows and mine.given is not None):
            # A forward that has failed may have left keys in one block and none in the next.
            fresh = _mine(self.new_cache())
            mine.states, mine.both = fresh.states, fresh.both
            if length == 0:
                mine.rows, mine.given = 0, None
        else:
            for layer in own_layers(mine.states, self.span):
                if (held := layer.get_seq_length()) > length - mine.rows:
                    layer.crop(length - mine.rows - held)
        mine.length, mine.torn = length, False

    def kv_bytes(self, tokens: int) -> int:
        """As :meth:`SpanModule.kv_bytes`: each is a token, or a row of the encoder, whatever takes more."""
        return max(super().kv_bytes(tokens), tokens * self.row_bytes)

    def prove(self) -> None:
        """As :meth:`SpanModule.prove`; measures what the rows of an encoder cost, too."""
        super().prove()
        cache = self.probe_cache()
        self.forward(torch.zeros((1, 1, self.width), dtype=self.dtype), cache, PROBE_ROWS)
        both = _mine(cache).both
        layers = both.cross_attention_cache.layers[self.span.start : self.span.end] if both else []
        keys = sum(map(cache_layer_bytes, layers)) // PROBE_ROWS
        self.row_bytes = keys + self.width * self.dtype.itemsize

    def _run(
        self,
        hidden: torch.Tensor,
        cache: Cache,
        position: int,
        sequence_length: int,
        mutual: Stretches = (),
        grids: Grids = (),
    ) -> torch.Tensor:
        mine = _mine(cache)
        out = super()._run(hidden, cache, position - mine.rows, sequence_length)
        mine.given = None  # every block has its keys and values by now
        return out

    def _inputs(self, hidden: torch.Tensor, cache: Cache, positions: torch.Tensor) -> dict[str, object]:
        mine = _mine(cache)
        given = mine.given
        if given is None:  # of which only the shape counts
            given = hidden.new_zeros((1, 1, self.width)).expand(1, mine.rows, self.width)
        return {
            **super()._inputs(hidden, cache, positions),
            "encoder_hidden_states": given,
            **dict.fromkeys(CACHE_NAMES, mine.both),
        }

    def _by_index(self, own: list[Any]) -> list[Any]:
        """An entry for each block of the decoder; masks ask for the first, whose block may be elsewhere."""
        first = self.span.start
        return [own[i - first] if i in self.span else own[0] for i in range(self.shape.decoder_blocks)]


class JoinedSpan:
    """A span of the whole model: blocks of its encoder, its decoder, or both. A session is on one side."""

    def __init__(
        self, span: Span, shape: EncoderDecoder, encoder: EncoderPart | None, decoder: DecoderPart | None
    ) -> None:
        self.span = span
        self.list_name = ""  # its blocks are in two lists
        self.boundary = shape.encoder_blocks
        self._encoder = encoder
        self._decoder = decoder
        sides = [side for side in (encoder, decoder) if side is not None]
        self.width = sides[0].width
        self.dtype = sides[0].dtype
        self.device = sides[0].device
        self.tensor_bytes = sum(side.tensor_bytes for side in sides)
        self.stateless = decoder is None
        """Whether there are none but blocks of the encoder."""

    def layer(self, block: int, name: str) -> None:
        """Nothing that an adapter could change."""

    @property
    def rolls_back(self) -> bool:
        return all(side.rolls_back for side in (self._encoder, self._decoder) if side is not None)

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of cache of a session of ``tokens`` tokens; one over the encoder takes none."""
        return 0 if self._decoder is None else self._decoder.kv_bytes(tokens)

    def part(self, span: Span) -> SpanModule:
        """Some of these blocks, on one side.

        Raises:
            UsageError: they are on both, or not here.
        """
        if span.start < self.boundary < span.end:
            raise UsageError(
                f"blocks {span} are an encoder's, up to {self.boundary}, and a decoder's: a session has one",
                check="update the client: it knows nothing of encoders with decoders",
            )
        side = self._encoder if span.start < self.boundary else self._decoder
        shift = 0 if span.start < self.boundary else self.boundary
        if side is None:
            raise UsageError(f"blocks {span} are not inside of {self.span}")
        return side.part(Span(span.start - shift, span.end - shift))

    def new_cache(self) -> Cache:
        """As that of the whole span, where it is on one side. Raises as :meth:`part`."""
        return self.part(self.span).new_cache()

    def forward(
        self,
        hidden: torch.Tensor,
        cache: Cache,
        position: int,
        sequence_length: int = 0,
        mutual: Stretches = (),
        grids: Grids = (),
    ) -> torch.Tensor:
        """As that of the whole span, where it is on one side. Raises as :meth:`part`."""
        return self.part(self.span).forward(hidden, cache, position, sequence_length, mutual, grids)


def _mine(cache: Cache) -> DecoderCache:
    if not isinstance(cache, DecoderCache):
        raise StepFailed("a cache of another kind of model")
    return cache


def sides_of(config: PretrainedConfig) -> EncoderDecoder:
    """The shape of a model that is known to have an encoder and a decoder."""
    shape = encoder_decoder(config.to_dict())
    if shape is None:
        raise UnsupportedModel(f"a {config.model_type} model has not both an encoder and a decoder")
    return shape


def most_rows(shape: EncoderDecoder) -> int:
    """Rows that an encoder gives at the most. A longer text would have no session over the decoder."""
    return shape.source if shape.input == "audio" else shape.context


def _lend(model: PreTrainedModel, blocks: Blocks) -> None:
    """Have the first block compute the biases of positions, in families that do so in the first of all."""
    table: Any = getattr(model, LENT_BIAS, None)
    if table is not None:
        lend_bias(blocks.modules[0], table)
