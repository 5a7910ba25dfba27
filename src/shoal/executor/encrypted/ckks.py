"""The only user of TenSEAL: SEAL's CKKS, by one set of parameters.

A column of up to 4,096 rows is one ciphertext. So a linear map is products of ciphertexts and numbers, and
sums: nothing is rotated, and who computes needs no key at all. Only processes of their own import this: what
SEAL reads may come from strangers.

SEAL writes and reads files alone. Each is in the folder that the process works in, holds a ciphertext, and is
removed at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tenseal.sealapi as seal

from shoal.errors import StepFailed
from shoal.executor.arrays import Doubles
from shoal.executor.encrypted.parameters import (
    ANSWER_CIPHERTEXT,
    DEGREE,
    FULL_CIPHERTEXT,
    PRIME_BITS,
    SCALE,
)

HERE = Path()
LEAST_EXPONENT = -256
"""Weights that are smaller than that together are as good as zero."""


class Ckks:
    """What both sides have: the parameters, and how ciphertexts become bytes.

    Args:
        folder: for the files that SEAL writes and reads.
    """

    def __init__(self, folder: Path = HERE) -> None:
        self._scratch = folder / "ciphertext"
        parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(DEGREE)
        parameters.set_coeff_modulus(seal.CoeffModulus.Create(DEGREE, list(PRIME_BITS)))
        # SEAL refuses parameters of less than 128 bits of security.
        self.context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
        self.encoder = seal.CKKSEncoder(self.context)
        self.dropped = float(parameters.coeff_modulus()[1].value())
        """The prime that a product is divided by: numbers that ciphertexts are multiplied with are scaled by
        it, so that the scale stays what it was."""

    def read(self, data: bytes | memoryview, *, computed: bool) -> Any:
        """A ciphertext that a stranger wrote.

        Args:
            computed: whether it is of an answer, else of a request.

        Raises:
            StepFailed: it is none by these parameters.
        """
        if len(data) > (ANSWER_CIPHERTEXT if computed else FULL_CIPHERTEXT):
            raise StepFailed(f"a ciphertext of {len(data)} bytes")
        read = seal.Ciphertext()
        self._scratch.write_bytes(data)
        try:
            read.load(self.context, str(self._scratch))
        except (RuntimeError, ValueError) as error:
            raise StepFailed(f"a ciphertext cannot be read ({error})") from error
        finally:
            self._scratch.unlink()
        wanted = self.context.last_parms_id() if computed else self.context.first_parms_id()
        if read.size() != 2 or not read.is_ntt_form() or read.scale != SCALE or read.parms_id() != wanted:
            raise StepFailed("a ciphertext of another size or scale than is computed with")
        return read

    def written(self, ciphertext: Any) -> bytes:
        """The bytes of a ciphertext."""
        try:
            ciphertext.save(str(self._scratch))
            return self._scratch.read_bytes()
        finally:
            self._scratch.unlink(missing_ok=True)


class SecretKey(Ckks):
    """A new key, known to this process alone: encrypts rows, and decrypts what was made of them."""

    def __init__(self, folder: Path = HERE) -> None:
        super().__init__(folder)
        key = seal.KeyGenerator(self.context).secret_key()
        self._encryptor = seal.Encryptor(self.context, key)
        self._decryptor = seal.Decryptor(self.context, key)

    def encrypt(self, rows: Doubles) -> list[bytes]:
        """Each column of some rows as a ciphertext. No number is more than 1, and there are no more rows than
        a ciphertext has slots."""
        written: list[bytes] = []
        for column in rows.T:
            plain = seal.Plaintext()
            self.encoder.encode(column.tolist(), SCALE, plain)
            # By the secret key: half of the ciphertext is random then, and only its seed is sent.
            written.append(self.written(self._encryptor.encrypt_symmetric(plain)))
        return written

    def decrypt(self, columns: Sequence[bytes | memoryview], rows: int) -> Doubles:
        """The first ``rows`` rows of what was computed, a column from each ciphertext.

        Raises:
            StepFailed: as :meth:`Ckks.read`.
        """
        made = np.empty((rows, len(columns)))
        for index, column in enumerate(columns):
            plain = seal.Plaintext()
            self._decryptor.decrypt(self.read(column, computed=True), plain)
            made[:, index] = self.encoder.decode_double(plain)[:rows]
        return made


class EncryptedMap(Ckks):
    """A linear map of rows that are encrypted.

    Args:
        matrix: scores × columns. The last column is of a number that whoever encrypts puts into each row, so
            that what is added to a score is scaled as all else is.
    """

    def __init__(self, matrix: Doubles, folder: Path = HERE) -> None:
        super().__init__(folder)
        self.exponent = weights_exponent(matrix)
        scaled = np.ldexp(matrix, -self.exponent)
        # Of zeros alone SEAL makes no ciphertext: it would be no secret.
        scaled[np.all(np.abs(scaled) * self.dropped < 1, axis=1), -1] = 2 / self.dropped
        self._matrix = scaled
        self._evaluator = seal.Evaluator(self.context)

    def __call__(self, columns: Sequence[bytes | memoryview]) -> list[bytes]:
        """Each score of all rows as a ciphertext, divided by two to the power of :attr:`exponent`.

        Raises:
            StepFailed: as :meth:`Ckks.read`, or the columns are of another number.
        """
        if len(columns) != self._matrix.shape[1]:
            raise StepFailed(f"{len(columns)} ciphertexts for {self._matrix.shape[1]} columns")
        read = [self.read(column, computed=False) for column in columns]
        return [self.written(self._score(read, weights)) for weights in self._matrix]

    def _score(self, columns: Sequence[Any], weights: Doubles) -> Any:
        total: Any = None
        product, plain, made = seal.Ciphertext(), seal.Plaintext(), seal.Ciphertext()
        for column, weight in zip(columns, weights.tolist(), strict=True):
            if abs(weight) * self.dropped < 1:
                continue  # it would be rounded to zero, by which SEAL does not multiply
            self.encoder.encode(weight, self.dropped, plain)
            if total is None:
                total = seal.Ciphertext()
                self._evaluator.multiply_plain(column, plain, total)
            else:
                self._evaluator.multiply_plain(column, plain, product)
                self._evaluator.add_inplace(total, product)
        self._evaluator.rescale_to_next(total, made)
        made.scale = SCALE  # as it is but for the last bits of a float
        return made


def weights_exponent(matrix: Doubles) -> int:
    """The power of two by which weights are divided, so that no score of numbers up to 1 is more than 1."""
    return max(LEAST_EXPONENT, math.frexp(float(np.abs(matrix).sum(axis=1).max()))[1])
