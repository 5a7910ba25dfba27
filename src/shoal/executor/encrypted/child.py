"""The process that encrypts, or that computes on what is encrypted. Run as a module.

SEAL is C++, and the ciphertexts that it reads are a stranger's: at a node the client's, at a client the
node's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from shoal.errors import ShoalError, StepFailed
from shoal.executor.encrypted.frames import (
    ApplyMap,
    CryptDone,
    CryptFault,
    CryptRequest,
    DecryptScores,
    EncryptRows,
    LoadMap,
)
from shoal.executor.graph.frame_server import serve_frames
from shoal.models.untrusted.limits import limit_memory

if TYPE_CHECKING:
    from shoal.executor.encrypted.ckks import EncryptedMap, SecretKey

MEMORY = 1 << 30
"""Bytes: 513 ciphertexts take 270 MB as they come and as they are computed with."""
_asked: msgspec.msgpack.Decoder[CryptRequest] = msgspec.msgpack.Decoder(CryptRequest)


def main() -> None:
    limit_memory(MEMORY, "DATA")
    worker = CryptWorker()
    serve_frames(lambda header, payload: worker.answer(_asked.decode(header), payload))


class CryptWorker:
    """Answers requests, one after another: of one side, or of the other."""

    def __init__(self) -> None:
        self._map: EncryptedMap | None = None
        self._key: SecretKey | None = None

    def answer(self, asked: CryptRequest, payload: bytearray) -> tuple[CryptDone | CryptFault, bytes]:
        """What to say to a request, and the payload."""
        try:
            return self._done(asked, payload)
        except ShoalError as error:
            return CryptFault(error.message), b""
        except MemoryError:
            return CryptFault(f"it needs more than {MEMORY >> 30} GiB of memory"), b""
        except Exception as error:  # noqa: BLE001 - of SEAL's own types, by what strangers send
            return CryptFault((str(error).splitlines() or [type(error).__name__])[0][:400]), b""

    def _done(self, asked: CryptRequest, payload: bytearray) -> tuple[CryptDone, bytes]:
        match asked:
            case LoadMap():
                return self._load(Path(asked.folder))
            case ApplyMap():
                return self._apply(asked, payload)
            case EncryptRows():
                return self._encrypt(asked, payload)
            case DecryptScores():
                return self._decrypt(asked, payload)

    def _load(self, folder: Path) -> tuple[CryptDone, bytes]:
        from shoal.executor.encrypted.ckks import EncryptedMap  # noqa: PLC0415 - after the limits
        from shoal.executor.graph.segments import ImportedGraph  # noqa: PLC0415 - as above

        self._map = EncryptedMap(ImportedGraph(folder).linear().matrix)
        return CryptDone(), b""

    def _apply(self, asked: ApplyMap, payload: bytearray) -> tuple[CryptDone, bytes]:
        if self._map is None:
            raise StepFailed("no graph is loaded")
        made = self._map(_parts(payload, asked.sizes))
        return CryptDone(tuple(map(len, made)), self._map.exponent), b"".join(made)

    def _encrypt(self, asked: EncryptRows, payload: bytearray) -> tuple[CryptDone, bytes]:
        from shoal.executor.encrypted.ckks import SecretKey  # noqa: PLC0415 - after the limits

        self._key = SecretKey()
        made = self._key.encrypt(np.frombuffer(payload).reshape(asked.rows, -1))
        return CryptDone(tuple(map(len, made))), b"".join(made)

    def _decrypt(self, asked: DecryptScores, payload: bytearray) -> tuple[CryptDone, bytes]:
        if self._key is None:
            raise StepFailed("nothing was encrypted")
        return CryptDone(), self._key.decrypt(_parts(payload, asked.sizes), asked.rows).tobytes()


def _parts(payload: bytearray, sizes: Sequence[int]) -> list[memoryview]:
    """The ciphertexts of a payload. Raises StepFailed: it has another number of bytes."""
    ends = list(accumulate(sizes, initial=0))
    if ends[-1] != len(payload):
        raise StepFailed(f"{len(payload)} bytes of ciphertexts where {ends[-1]} are declared")
    view = memoryview(payload)
    return [view[begin:end] for begin, end in pairwise(ends)]


if __name__ == "__main__":
    main()
