"""Models with an encoder and a decoder: T5 reads a text and writes another, Whisper listens and writes.

Their blocks are numbered through: those of the encoder first, then those of the decoder. A session is over
one side. The encoder's keeps nothing; the decoder's begins with what the encoder gave, row for row, before
its first token (:mod:`shoal.models.build.seq2seq.spans`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from shoal.errors import BadWeights
from shoal.types import Span

READERS = ("mt5", "t5")
ENCODER_DECODERS = (*READERS, "whisper")
"""Model types for which tests show that spans of blocks give what the whole model does."""
KEPT_FLOAT = ".DenseReluDense.wo"
"""The layers of T5 that stay float32 in every format: its code reads their weights, and needs the range."""
MAX_BLOCKS = 4096
"""Of either side. Honest models have up to 32."""


@dataclass(frozen=True, slots=True)
class EncoderDecoder:
    """The shape of such a model, as far as sessions go."""

    input: Literal["text", "audio"]
    encoder_blocks: int
    decoder_blocks: int
    source: int
    """Rows of hidden states that the encoder takes: of a text at the most, of sound always."""
    target: int
    """Tokens that the decoder takes, those with which it begins among them."""
    start: int
    """The token with which the decoder begins."""
    bins: int = 0
    """Of the log-mel features that it hears; 0: it reads."""

    @property
    def encoder(self) -> Span:
        """The blocks of the encoder."""
        return Span(0, self.encoder_blocks)

    @property
    def decoder(self) -> Span:
        """The blocks of the decoder."""
        return Span(self.encoder_blocks, self.n_blocks)

    @property
    def n_blocks(self) -> int:
        return self.encoder_blocks + self.decoder_blocks

    @property
    def context(self) -> int:
        """The longest session over the decoder: what the encoder gave, and the tokens behind it."""
        return self.source + self.target


def encoder_decoder(config: Mapping[str, Any]) -> EncoderDecoder | None:
    """The shape of a model by its ``config.json``; ``None`` if it has not both, or none that is served.

    Raises:
        BadWeights: the config makes no sense.
    """
    kind = config.get("model_type")
    if kind in READERS:
        layers = _size(config, "num_layers", 0, MAX_BLOCKS)
        # Positions are relative. What the model was trained with bounds either side.
        trained = _size(config, "n_positions", 512)
        return EncoderDecoder(
            "text",
            layers,
            _size(config, "num_decoder_layers", layers, MAX_BLOCKS),
            trained,
            trained,
            _token(config, "decoder_start_token_id", config.get("pad_token_id", 0)),
        )
    if kind == "whisper":
        return EncoderDecoder(
            "audio",
            _size(config, "encoder_layers", 4, MAX_BLOCKS),
            _size(config, "decoder_layers", 4, MAX_BLOCKS),
            _size(config, "max_source_positions", 1500),
            _size(config, "max_target_positions", 448),
            _token(config, "decoder_start_token_id", 50257),
            _size(config, "num_mel_bins", 80, 4096),
        )
    return None


def _size(config: Mapping[str, Any], name: str, default: int, most: int = 1 << 20) -> int:
    value: object = config.get(name)
    value = default if value is None else value
    if type(value) is not int or not 0 < value <= most:
        raise BadWeights(f"config.json: {name} is {str(value)[:40]}, not a number in 1..{most}")
    return value


def _token(config: Mapping[str, Any], name: str, default: object) -> int:
    value: object = config.get(name)
    value = default if value is None else value
    if type(value) is not int or not 0 <= value < 2**31:
        raise BadWeights(f"config.json: {name} is {str(value)[:40]}, not a token")
    return value
