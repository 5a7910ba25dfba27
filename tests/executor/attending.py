"""A layer's attention in C, called directly."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, byref, c_int, c_int64, c_void_p
from dataclasses import dataclass

import numpy as np

from shoal.executor.arrays import Floats, address, empty
from shoal.executor.kernels.c_kernels import NUMBER
from shoal.executor.kernels.structs import KvStruct, SequenceStruct
from shoal.executor.pages import PAGE
from shoal.types import Format

HEADS, KV_HEADS, DIMS = 6, 2, 20
LONGEST = 1100
"""Tokens: several of the pieces in which a context is taken."""
KV_FORMATS: tuple[Format, ...] = ("bf16", "int8")


def declared(library: ctypes.CDLL) -> ctypes.CDLL:
    library.pool_new.restype = c_void_p
    library.pool_new.argtypes = [c_int]
    library.pool_free.argtypes = [c_void_p]
    library.kv_layer_bytes.argtypes = [POINTER(KvStruct)]
    library.kv_layer_bytes.restype = c_int64
    library.kv_put.argtypes = [POINTER(KvStruct), c_int, c_void_p, c_int, c_void_p, c_void_p]
    library.attention_floats.argtypes = [POINTER(KvStruct), c_void_p, c_int, c_int]
    library.attention_floats.restype = c_int64
    library.attention_units.argtypes = [POINTER(KvStruct), c_int, c_void_p, c_int, c_int]
    library.attend.argtypes = [
        *(c_void_p, POINTER(KvStruct), c_int, c_int, c_void_p, c_int, c_void_p, c_int64, c_void_p, c_void_p)
    ]
    return library


@dataclass(frozen=True, slots=True)
class Step:
    """Rows of one session: ``rows`` of them after ``position`` cached tokens."""

    position: int
    rows: int = 1


class Attention:
    """A layer's KV of one context, which every session shares, in pages whose unused places are poisoned."""

    def __init__(self, library: ctypes.CDLL, format: Format) -> None:
        self.library = declared(library)
        self.kv = KvStruct(HEADS, KV_HEADS, DIMS, NUMBER[format], DIMS**-0.5)
        self.kv.page_bytes = self.library.kv_layer_bytes(byref(self.kv))
        pages = (LONGEST + PAGE - 1) // PAGE
        self.arena = empty((pages, self.kv.page_bytes), np.uint8)
        self.arena.fill(0xFF)
        self.kv.arena = address(self.arena)
        self.pages = np.random.default_rng(0).permutation(pages).astype(np.int32)
        random = np.random.default_rng(1)
        shape = (LONGEST, KV_HEADS, DIMS)
        self.keys, self.values = (random.standard_normal(shape, np.float32) for _ in range(2))
        sequence = self._sequences([Step(0, LONGEST)])
        for token in range(LONGEST):
            key, value = (np.ascontiguousarray(x[token]) for x in (self.keys, self.values))
            self.library.kv_put(byref(self.kv), 0, sequence, token, address(key), address(value))

    def _sequences(self, steps: Sequence[Step]) -> ctypes.Array[SequenceStruct]:
        sequences = (SequenceStruct * len(steps))()
        row = 0
        for sequence, step in zip(sequences, steps, strict=True):
            sequence.row, sequence.rows, sequence.position = row, step.rows, step.position
            sequence.pages = address(self.pages)
            row += step.rows
        return sequences

    def units(self, steps: Sequence[Step], threads: int, window: int = 0) -> int:
        sequences = self._sequences(steps)
        return self.library.attention_units(byref(self.kv), window, sequences, len(steps), threads)

    def run(self, steps: Sequence[Step], *, threads: int = 2, window: int = 0) -> Floats:
        """What the rows of all steps get, each with its position's query: ``[rows, HEADS, DIMS]``."""
        sequences, kv, count = self._sequences(steps), byref(self.kv), len(steps)
        asked = np.concatenate([queries(range(s.position, s.position + s.rows)) for s in steps])
        out = empty(asked.shape)
        scratch = empty((self.library.attention_floats(kv, sequences, count, threads),))
        scratch.fill(np.nan)
        pool = self.library.pool_new(threads)
        stride = HEADS * DIMS
        self.library.attend(
            pool, kv, 0, window, sequences, count, address(asked), stride, address(out), address(scratch)
        )
        self.library.pool_free(pool)
        return out


def queries(positions: Sequence[int]) -> Floats:
    """Each position's own, ``[n, HEADS, DIMS]``, large enough that some tokens count more than others."""
    return 2 * np.random.default_rng(2).standard_normal((LONGEST, HEADS, DIMS), np.float32)[list(positions)]
