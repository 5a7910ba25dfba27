"""Documents of the Nitro Security Module, by its device.

One ``ioctl`` carries a request and room for its answer, both CBOR, each by an address and a length
(``struct nsm_message`` of the kernel's ``linux/nsm.h``).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2

from shoal.node.attestation.quotes import Quote, QuoteFailed

ANSWER_LIMIT = 0x3000
"""Bytes of the module's longest answer."""


class _Vector(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    _fields_ = (("request", _Vector), ("response", _Vector))


IOCTL = 3 << 30 | ctypes.sizeof(_Message) << 16 | 0x0A << 8
"""``_IOWR(0x0A, 0, struct nsm_message)``."""

NsmExchange = Callable[[bytes], bytes]
"""Asks the module; raises OSError."""


class NsmQuotes:
    """Documents of the enclave that we run in."""

    def __init__(self, device: Path, exchange: NsmExchange | None = None) -> None:
        self._device = device
        self._exchange = exchange or self._ask

    def quote(self, report_data: bytes) -> Quote:
        """See :class:`shoal.node.attestation.quotes.QuoteSource`."""
        asked = {"Attestation": {"user_data": report_data, "nonce": None, "public_key": None}}
        try:
            answer: Any = cbor2.loads(self._exchange(cbor2.dumps(asked)))
        except (OSError, cbor2.CBORDecodeError) as error:
            raise QuoteFailed(f"the Nitro Security Module does not answer: {error}") from error
        match answer:
            case {"Attestation": {"document": bytes(document)}}:
                return Quote("nitro", document)
            case _:
                raise QuoteFailed(f"the Nitro Security Module gives no document: {answer!r:.200}")

    def _ask(self, request: bytes) -> bytes:
        import fcntl  # noqa: PLC0415  is not on Windows, where there is no such device either

        room = ctypes.create_string_buffer(ANSWER_LIMIT)
        given = ctypes.create_string_buffer(request, len(request))
        message = _Message(
            _Vector(ctypes.addressof(given), len(request)), _Vector(ctypes.addressof(room), ANSWER_LIMIT)
        )
        with self._device.open("r+b", buffering=0) as device:
            fcntl.ioctl(device, IOCTL, message)
        return room.raw[: message.response.length]
