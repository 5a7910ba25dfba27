"""What real hardware has signed: it verifies in its own time, and not as it is now."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from omne_attest import vectors

from shoal.trust.attestation.chains import at, check_chain, check_pinned, read_certificate
from shoal.trust.attestation.evidence import AttestationRefused, Claims
from shoal.trust.attestation.intel import verify_intel
from shoal.trust.attestation.snp import AMD_ROOTS, SnpCollateral, read_report, verify_snp

DATA = Path(__file__).parent / "data"
TODAY = 1_796_000_000.0


def recorded(name: str) -> tuple[bytes, bytes, float]:
    """A quote, what it is verified with, and a time at which that held."""
    collateral = (DATA / f"{name}_collateral.json").read_bytes()
    issued = json.loads(json.loads(collateral)["tcb_info"])["issueDate"]
    return (DATA / name).read_bytes(), collateral, datetime.fromisoformat(issued).timestamp() + 86400


def refused(kind: Any, quote: bytes, collateral: bytes, now: float) -> str:
    with pytest.raises(AttestationRefused) as caught:
        verify_intel(kind, quote, collateral, now, None)
    return caught.value.reason


def test_a_quote_of_tdx_holds_in_its_time() -> None:
    quote, collateral, now = recorded("tdx_quote")
    found = verify_intel("tdx", quote, collateral, now, None)
    assert (found.tcb, found.advisories) == ("UpToDate", ())
    assert found.measurements["mr_td"].startswith("91eb2b44d141d4ece09f0c75c2c53d24")
    assert refused("tdx", quote, collateral, TODAY) == "expired"


def test_a_quote_of_sgx_holds_in_its_time_and_says_what_its_machine_lacks() -> None:
    quote, collateral, now = recorded("sgx_quote")
    found = verify_intel("sgx", quote, collateral, now, None)
    assert found.tcb == "ConfigurationAndSWHardeningNeeded"
    assert found.advisories == ("INTEL-SA-00289", "INTEL-SA-00615")
    assert found.report_data.startswith(b"Hello, world")
    assert refused("sgx", quote, collateral, TODAY) == "expired"


def test_a_quote_of_a_machine_too_old_for_any_level_is_outdated() -> None:
    quote, collateral, now = recorded("tdx_quote_outdated")
    assert refused("tdx", quote, collateral, now) == "outdated"


def test_a_quote_with_what_belongs_to_another_is_refused() -> None:
    quote, _, now = recorded("tdx_quote")
    assert refused("tdx", quote, recorded("sgx_quote")[1], now)


@pytest.mark.parametrize("name", ["tdx_quote", "sgx_quote"])
def test_no_byte_of_a_real_quote_can_be_changed(name: str) -> None:
    quote, collateral, now = recorded(name)
    for place in range(50, quote.index(b"-----BEGIN"), 131):
        changed = bytearray(quote)
        changed[place] ^= 1
        assert refused(name[:3], bytes(changed), collateral, now)


def chip() -> tuple[bytes, SnpCollateral]:
    """A report of a real chip, which runs a guest that may be debugged; its list of revoked certificates is
    not in the package."""
    return vectors.attestation(), SnpCollateral(vectors.vcek(), vectors.ask(), vectors.ark(), b"")


def test_the_chain_of_a_real_chip_ends_in_the_root_that_is_pinned() -> None:
    _, given = chip()
    chain = [read_certificate(data, "certificate") for data in (given.vcek, given.ask, given.ark)]
    check_pinned(chain[-1], AMD_ROOTS, "AMD")
    assert check_chain(chain, at(TODAY)) > TODAY


def test_a_report_of_a_real_chip_is_signed_by_it_and_refused_as_its_guest_may_be_debugged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quote, given = chip()
    with pytest.raises(AttestationRefused) as caught:
        verify_snp(quote, given.encoded(), TODAY)
    assert caught.value.reason == "unreadable"  # without the list of revoked certificates

    def no_list(*_: Any) -> float:
        return TODAY + 1

    monkeypatch.setattr("shoal.trust.attestation.snp.read_crl", no_list)
    monkeypatch.setattr("shoal.trust.attestation.snp.check_revoked", no_list)
    with pytest.raises(AttestationRefused) as caught:
        verify_snp(quote, given.encoded(), TODAY)
    assert caught.value.reason == "debug"
    monkeypatch.setattr("shoal.trust.attestation.snp.POLICY_DEBUG", 0)
    found: Claims = verify_snp(quote, given.encoded(), TODAY)
    assert found.levels == {"boot_loader": 2, "tee": 0, "snp": 5, "microcode": 68}
    assert found.measurements["measurement"] == read_report(quote).measurement.hex()
    with pytest.raises(AttestationRefused) as caught:
        verify_snp(quote[:0x90] + b"\0" + quote[0x91:], given.encoded(), TODAY)
    assert caught.value.reason == "signature"
