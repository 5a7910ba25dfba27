"""Arithmetic on ciphertexts: how near it is, that a key is needed, and that one set of parameters is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tenseal.sealapi as seal

from shoal.errors import StepFailed
from shoal.executor.encrypted.ckks import Ckks, EncryptedMap, SecretKey
from shoal.executor.encrypted.parameters import (
    ANSWER_CIPHERTEXT,
    DEGREE,
    ERROR,
    FULL_CIPHERTEXT,
    PRIME_BITS,
    SCALE,
    SLOTS,
)

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    "matrix",
    [
        RANDOM.standard_normal((3, 31)),
        RANDOM.standard_normal((1, 200)) * 1e6,
        RANDOM.standard_normal((2, 5)) * 1e-6,
        np.array([[1e-30, 0, 1], [0, 0, 0], [-1e3, 1e3, 0]]),
        np.zeros((1, 4)),
    ],
)
def test_scores_are_as_near_as_is_said(matrix: Any, tmp_path: Path) -> None:
    rows = RANDOM.uniform(-1, 1, (SLOTS, matrix.shape[1]))
    key, mapped = SecretKey(tmp_path), EncryptedMap(matrix, tmp_path)
    columns = key.encrypt(rows)
    made = mapped(columns)
    scores = np.ldexp(key.decrypt(made, SLOTS), mapped.exponent)
    assert np.abs(scores - rows @ matrix.T).max() < np.ldexp(ERROR, mapped.exponent)
    assert max(map(len, columns)) <= FULL_CIPHERTEXT / 2
    assert max(map(len, made)) <= ANSWER_CIPHERTEXT
    assert not list(tmp_path.iterdir())


def test_the_parameters_have_128_bits_of_security() -> None:
    assert sum(PRIME_BITS) <= seal.CoeffModulus.MaxBitCount(DEGREE, seal.SEC_LEVEL_TYPE.TC128)
    assert Ckks().context.parameters_set()


def test_another_key_reads_nothing(tmp_path: Path) -> None:
    mine, other = SecretKey(tmp_path), SecretKey(tmp_path)
    made = EncryptedMap(np.array([[1.0, 0.0]]), tmp_path)(mine.encrypt(np.full((2, 2), 0.5)))
    assert np.allclose(mine.decrypt(made, 2), 0.25)
    assert not np.allclose(other.decrypt(made, 2), 0.25, atol=1)


def test_two_encryptions_of_the_same_rows_have_nothing_in_common(tmp_path: Path) -> None:
    key, rows = SecretKey(tmp_path), np.full((1, 1), 0.5)
    (one,), (other,) = key.encrypt(rows), key.encrypt(rows)
    bits = np.frombuffer(one[200:4200], np.uint8) == np.frombuffer(other[200:4200], np.uint8)
    assert bits.mean() < 0.02


def other_parameters(folder: Path, degree: int, scale: float, **changes: Any) -> bytes:
    """A ciphertext by somebody else's parameters."""
    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    parameters.set_poly_modulus_degree(degree)
    parameters.set_coeff_modulus(seal.CoeffModulus.Create(degree, changes.get("bits", [60, 60, 60])))
    context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
    key = seal.KeyGenerator(context).secret_key()
    plain, file = seal.Plaintext(), folder / "other"
    seal.CKKSEncoder(context).encode(0.5, scale, plain)
    seal.Encryptor(context, key).encrypt_symmetric(plain).save(str(file))
    return file.read_bytes()


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda folder: other_parameters(folder, 4096, 2.0**20, bits=[40, 20, 40]), "cannot be read"),
        (lambda folder: other_parameters(folder, DEGREE, SCALE, bits=[60, 40, 60]), "cannot be read"),
        (lambda folder: other_parameters(folder, DEGREE, 2.0**40), "another size or scale"),
        (lambda folder: b"", "cannot be read"),
        (lambda folder: bytes(FULL_CIPHERTEXT + 1), "a ciphertext of"),
    ],
)
def test_what_was_encrypted_otherwise_is_refused(made: Any, why: str, tmp_path: Path) -> None:
    mapped = EncryptedMap(np.array([[1.0]]), tmp_path)
    with pytest.raises(StepFailed, match=why):
        mapped([made(tmp_path)])
    with pytest.raises(StepFailed, match="another size or scale"):
        SecretKey(tmp_path).decrypt(SecretKey(tmp_path).encrypt(np.zeros((1, 1))), 1)
