"""The C kernels' structs, as their headers have them."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_float, c_int, c_int32, c_int64, c_void_p


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
        ("unused", c_int32),
        ("pages", c_void_p),
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
        ("kv", KvStruct),
    )


PRODUCT = ctypes.CFUNCTYPE(c_int, POINTER(LinearStruct), c_void_p, c_int, c_void_p)
"""``product_fn`` of native/linear.h."""
