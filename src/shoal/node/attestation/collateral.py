"""What quotes are verified with, brought by the node itself: who asks it needs no network beside the swarm.

All of it is signed by the hardware's maker and says until when it holds, so nobody has to believe the node.
It is fetched again every few hours.
"""

from __future__ import annotations

import asyncio
import logging
import time
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from shoal.errors import ShoalError
from shoal.node.attestation.quotes import Quote, QuoteFailed
from shoal.trust.attestation.chains import read_certificate
from shoal.trust.attestation.intel import intel_library
from shoal.trust.attestation.snp import CHIP_OID, SnpCollateral, SnpReport, read_report

FRESH_S = 4 * 3600.0
"""How long it is not fetched again; lists of revoked certificates hold for weeks."""
RETRY_S = 600.0
"""After how long it is tried again where that has failed."""
FETCH_WITHIN_S = 15.0
FETCH_LIMIT = 1 << 20
AMD_SERVICE = "https://kdsintf.amd.com/vcek/v1"
PRODUCTS = ("Milan", "Genoa", "Turin")
_CERTIFICATES = {
    uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd"): "vcek",
    uuid.UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782"): "ask",
    uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae"): "ark",
}
_ENTRY = 24

log = logging.getLogger(__name__)

ServiceRequest = Callable[[str], bytes]
"""Fetches an address; raises OSError."""


class CollateralSource:
    """What goes beside this machine's quotes. Used by one thread at a time.

    Args:
        pccs: the service that has Intel's: Intel's own, or a cache of it.
        download: how AMD's is fetched.
        clock: seconds, of any beginning.
    """

    def __init__(
        self,
        pccs: str,
        download: ServiceRequest | None = None,
        intel: Callable[[str, bytes], bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pccs = pccs
        self._download = download or fetch_https
        self._intel = intel or fetch_intel
        self._clock = clock
        self._kept = b""
        self._again_at = 0.0

    def beside(self, quote: Quote) -> bytes:
        """What ``quote`` is verified with.

        Raises:
            QuoteFailed: it cannot be had.
        """
        if quote.kind == "nitro":
            return b""  # the document brings its certificates
        now = self._clock()
        if not self._kept or now >= self._again_at:
            try:
                self._kept, self._again_at = self._fetched(quote), now + FRESH_S
            except (OSError, ValueError, RuntimeError, ShoalError) as error:
                if not self._kept:
                    raise QuoteFailed(
                        f"what the maker says of this machine cannot be had: {error}",
                        check="check that this machine reaches the maker's service; for Intel, see pccs",
                    ) from error
                # What there is holds for weeks, and says until when to whoever verifies with it.
                log.warning("what the maker says of this machine cannot be had again: %s", error)
                self._again_at = now + RETRY_S
        return self._kept

    def _fetched(self, quote: Quote) -> bytes:
        if quote.kind == "snp":
            return fetch_amd(quote, self._download).encoded()
        return self._intel(self._pccs, quote.data)


def fetch_intel(pccs: str, quote: bytes) -> bytes:
    """What Intel says of a machine, by dcap-qvl. Raises ValueError, RuntimeError: it cannot be had."""
    library = intel_library()

    async def fetch() -> Any:
        async with asyncio.timeout(FETCH_WITHIN_S):
            return await library.get_collateral(pccs, quote)

    return asyncio.run(fetch()).to_json().encode()


def fetch_amd(quote: Quote, download: ServiceRequest) -> SnpCollateral:
    """AMD's certificates for a report: those that came with it, else those of AMD's service.

    Raises:
        OSError, ValueError: they cannot be had.
    """
    report = read_report(quote.data)
    given = dict(read_table(quote.certificates))
    if set(given) == set(_CERTIFICATES.values()):
        product = _product_of(given["ark"])
    else:
        product, given = _from_service(report, download)
    crl = download(f"{AMD_SERVICE}/{product}/crl")
    return SnpCollateral(given["vcek"], given["ask"], given["ark"], crl)


def read_table(data: bytes) -> Sequence[tuple[str, bytes]]:
    """The certificates in what a host has put beside a report: a table of names, places and lengths."""
    found: list[tuple[str, bytes]] = []
    for start in range(0, len(data) - _ENTRY + 1, _ENTRY):
        name = data[start : start + 16]
        if not any(name):
            break
        place, size = (int.from_bytes(data[start + 16 + i : start + 20 + i], "little") for i in (0, 4))
        known = _CERTIFICATES.get(uuid.UUID(bytes=name)) or _CERTIFICATES.get(uuid.UUID(bytes_le=name))
        if known and place + size <= len(data):
            found.append((known, data[place : place + size]))
    return found


def vcek_path(product: str, report: SnpReport) -> str:
    """Where AMD's service has the certificate of a report's chip, for its versions."""
    v = report.reported
    if product == "Turin":
        chip, versions = report.chip[:8], {"fmcSPL": v[0], "blSPL": v[1], "teeSPL": v[2], "snpSPL": v[3]}
    else:
        chip, versions = report.chip, {"blSPL": v[0], "teeSPL": v[1], "snpSPL": v[6]}
    query = "&".join(f"{name}={version:02d}" for name, version in (versions | {"ucodeSPL": v[7]}).items())
    return f"{product}/{chip.hex()}?{query}"


def _from_service(report: SnpReport, download: ServiceRequest) -> tuple[str, Mapping[str, bytes]]:
    """The product and the certificates of a chip. What product it is of, its report does not always say."""
    refused: OSError = OSError("AMD's service knows no such chip")
    for product in PRODUCTS:
        try:
            vcek = download(f"{AMD_SERVICE}/{vcek_path(product, report)}")
        except OSError as error:
            refused = error
            continue
        chip = read_certificate(vcek, "VCEK").extensions.get_extension_for_oid(
            x509.ObjectIdentifier(CHIP_OID)
        )
        if not isinstance(chip.value, x509.UnrecognizedExtension) or not report.chip.startswith(
            chip.value.value
        ):
            continue
        issuers = x509.load_pem_x509_certificates(download(f"{AMD_SERVICE}/{product}/cert_chain"))
        ask, ark = (certificate.public_bytes(Encoding.DER) for certificate in issuers[:2])
        return product, {"vcek": vcek, "ask": ask, "ark": ark}
    raise refused


def _product_of(ark: bytes) -> str:
    name = read_certificate(ark, "ARK").subject.rfc4514_string()
    product = next((product for product in PRODUCTS if f"ARK-{product}" in name), None)
    if product is None:
        raise ValueError(f"{name[:100]} is no root of AMD that Shoal knows")
    return product


def fetch_https(url: str) -> bytes:
    """Fetch an address of the maker's. Raises OSError: nobody answers, or with an error, or too much."""
    with urllib.request.urlopen(url, timeout=FETCH_WITHIN_S) as response:
        data: bytes = response.read(FETCH_LIMIT + 1)
    if len(data) > FETCH_LIMIT:
        raise OSError(f"{url} gives more than {FETCH_LIMIT} bytes")
    return data
