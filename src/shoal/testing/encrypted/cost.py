"""What homomorphic encryption takes on this machine: ``python -m shoal.testing.encrypted.cost``.

A matrix times one encrypted vector, as TenSEAL multiplies them by rotations, on one core: what a block of a
language model is made of. Beside it a small linear model as Shoal runs it, whose ciphertexts hold columns.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tenseal

from shoal.executor.encrypted.ckks import EncryptedMap, SecretKey
from shoal.executor.encrypted.cost import WIDTH
from shoal.executor.encrypted.parameters import DEGREE, SLOTS

TIMES = 3
COLUMNS = 30


def main() -> None:
    random = np.random.default_rng(0)
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, DEGREE, coeff_mod_bit_sizes=[60, 40, 60], n_threads=1)
    context.global_scale = 2**40
    context.generate_galois_keys()
    vector = tenseal.ckks_vector(context, random.standard_normal(WIDTH).tolist())
    matrix = random.standard_normal((WIDTH, WIDTH)).tolist()
    took = min(_seconds(lambda: vector.mm(matrix)) for _ in range(TIMES))
    sys.stdout.write(
        f"a matrix of {WIDTH}×{WIDTH} times one encrypted vector: {took:.2f} s, the best of {TIMES}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        _small(random, Path(folder))


def _small(random: np.random.Generator, folder: Path) -> None:
    rows = random.uniform(-1, 1, (SLOTS, COLUMNS + 1))
    key, mapped = SecretKey(folder), EncryptedMap(random.standard_normal((1, COLUMNS + 1)), folder)
    encrypted = key.encrypt(rows)
    made = mapped(encrypted)
    for what, work in {
        "to encrypt": partial(key.encrypt, rows),
        "to compute": partial(mapped, encrypted),
        "to decrypt": partial(key.decrypt, made, SLOTS),
    }.items():
        took = min(_seconds(work) for _ in range(TIMES))
        sys.stdout.write(f"{SLOTS} rows of {COLUMNS} columns, {what}: {1e3 * took:.0f} ms\n")
    sys.stdout.write(
        f"{sum(map(len, encrypted)) / 1e6:.1f} MB go there, {sum(map(len, made)) / 1e6:.1f} MB come back\n"
    )


def _seconds(work: Callable[[], Any]) -> float:
    began = time.process_time()  # it is of one thread, and other work of the machine does not count
    work()
    return time.process_time() - began


if __name__ == "__main__":
    main()
