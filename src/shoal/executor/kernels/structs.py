"""The C kernels' structs, as their headers have them."""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    Structure,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_uint8,
    c_uint32,
    c_void_p,
)


class LinearStruct(Structure):
    """``linear_t`` of native/linear.h."""

    _fields_ = (
        ("rows", c_int32),
        ("cols", c_int32),
        ("format", c_int32),
        ("group", c_int32),
        ("weights", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("minima", c_void_p),
        ("zero", c_int32),
        ("halves", c_int32),
    )


class SequenceStruct(Structure):
    """``sequence_t`` of native/attention.h."""

    _fields_ = (
        ("row", c_int32),
        ("rows", c_int32),
        ("position", c_int32),
        ("adapter", c_int32),
        ("pages", c_void_p),
        ("ends", c_void_p),
        ("rotary_positions", c_void_p),
    )


class KvStruct(Structure):
    """``kv_t`` of native/attention.h."""

    _fields_ = (
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("format", c_int32),
        ("scale", c_float),
        ("unused", c_int32),
        ("arena", c_void_p),
        ("page_bytes", c_int64),
    )


class LayerStruct(Structure):
    """``layer_t`` of native/span.h."""

    _fields_ = (
        ("attention_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("after_attention", c_void_p),
        ("after_mlp", c_void_p),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("qkv", LinearStruct),
        ("out", LinearStruct),
        ("gate_up", LinearStruct),
        ("down", LinearStruct),
        ("window", c_int32),
        ("rope", c_int32),
    )


MOST_PARTS = 3
"""As in native/adapter.h."""
ADAPTABLE = ("qkv", "out", "gate_up", "down")
"""A layer's matrices in the order of native/adapter.h."""


class LowRankStruct(Structure):
    """``low_rank_t`` of native/adapter.h."""

    _fields_ = (
        ("down", c_void_p),
        ("up", c_void_p),
        ("rank", c_int32),
        ("cols", c_int32),
        ("first", c_int32),
        ("rows", c_int32),
        ("stride", c_int64),
    )


class AdaptedStruct(Structure):
    """``adapted_t`` of native/adapter.h."""

    _fields_ = (
        ("parts", LowRankStruct * MOST_PARTS * len(ADAPTABLE)),
        ("counts", c_int32 * len(ADAPTABLE)),
    )


class SpanStruct(Structure):
    """``span_t`` of native/span.h."""

    _fields_ = (
        ("hidden", c_int32),
        ("ffn", c_int32),
        ("rotary", c_int32),
        ("activation", c_int32),
        ("epsilon", c_float),
        ("residual", c_float),
        ("frequencies", c_void_p * 2),
        ("rope_scale", c_float * 2),
        ("n_layers", c_int32),
        ("unused", c_int32),
        ("layers", POINTER(LayerStruct)),
        ("adapters", c_void_p),
        ("axes", c_void_p),
        ("kv", KvStruct),
    )


class TapeStruct(Structure):
    """``tape_t`` of native/tape.h."""

    _fields_ = (
        ("inputs", c_void_p * len(ADAPTABLE)),
        ("sums", c_void_p * len(ADAPTABLE)),
        ("given", c_int32),
        ("unused", c_int32),
    )


PRODUCT = ctypes.CFUNCTYPE(c_int, POINTER(LinearStruct), c_void_p, c_int, c_void_p)
"""``product_fn`` of native/linear.h."""


MOST_STEPS = 16
"""As in native/decode_hop.h."""


class SeatStruct(Structure):
    """``seat_t`` of native/decode_hop.h."""

    _fields_ = (
        ("session", c_uint8 * 16),
        ("channel", c_int64),
        ("length", c_int64),
        ("awaited", c_int64),
        ("limit", c_int64),
        ("pages", c_void_p),
        ("left", c_double),
        ("away", c_double),
        ("number", c_uint32),
        ("ready", c_int32),
        ("start", c_int32),
        ("end", c_int32),
        ("hop", c_int32),
        ("codec", c_int32),
        ("adapter", c_int32),
    )


class RanStruct(Structure):
    """``ran_t`` of native/decode_hop.h."""

    _fields_ = (
        ("seat", c_int32),
        ("codec", c_int32),
        ("header_at", c_int32),
        ("header", c_int32),
        ("out_at", c_int32),
        ("out", c_int32),
        ("payload", c_int32),
        ("token", c_int32),
    )


class EndsStruct(Structure):
    """``ends_t`` of native/decode_ends.h."""

    _fields_ = (
        ("head", LinearStruct),
        ("norm", c_void_p),
        ("embedding", c_void_p),
        ("bfloat16", c_int32),
        ("epsilon", c_float),
        ("logits", c_float),
        ("factor", c_float),
        ("normed", c_void_p),
        ("scores", c_void_p),
    )


class DecodeHopStruct(Structure):
    """``decode_hop_t`` of native/decode_hop.h."""

    _fields_ = (
        ("team", c_void_p),
        ("span", POINTER(SpanStruct)),
        ("ends", POINTER(EndsStruct)),
        ("seats", POINTER(SeatStruct)),
        ("n_seats", c_int64),
        ("width", c_int64),
        ("hidden", c_void_p),
        ("out", c_void_p),
        ("out_bytes", c_int64),
        ("most_payload", c_int64),
        ("wait_s", c_double),
        ("asked", c_double),
        ("began", c_double),
        ("ended", c_double),
        ("compute_us", c_int64),
        ("waiting_us", c_int64),
        ("ran", RanStruct * MOST_STEPS),
    )
