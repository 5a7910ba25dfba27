"""What hardware signs, by roots of our own: what holds, and each refusal by its name."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import Any

import msgspec
import pytest

from shoal.errors import RemoteProtocolError, UsageError
from shoal.testing.tee.intel import FakeMachine, IntelKind, allowed_machine, allowed_sgx
from shoal.testing.tee.nitro import FakeEnclave, allowed_enclave
from shoal.testing.tee.snp import FakeChip, allowed_chip
from shoal.trust.attestation.evidence import AttestationRefused, Binding, Evidence, read_evidence
from shoal.trust.attestation.measurements import Measurements
from shoal.trust.attestation.verify import Roots, Verified, verify_evidence
from shoal.wire.messages import MAX_EVIDENCE

BEGINS = datetime(2026, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 1, 10, tzinfo=UTC).timestamp()
DAY = timedelta(days=1)
ASKED = Binding("a peer", os.urandom(32), "sha256:" + "0" * 64, "n1/int8/auto/rows", os.urandom(32))
ALLOWED = Measurements(
    tdx=(allowed_machine(),), sgx=(allowed_sgx(),), snp=(allowed_chip(),), nitro=(allowed_enclave(),)
)

Make = Callable[[Binding], Evidence]


@cache
def machine_of(kind: IntelKind, **made: Any) -> FakeMachine:
    return FakeMachine(BEGINS, kind, **made)


@cache
def chip_of(**made: Any) -> FakeChip:
    return FakeChip(BEGINS, **made)


@cache
def enclave_of(**made: Any) -> FakeEnclave:
    return FakeEnclave(BEGINS, **made)


def tdx(binding: Binding, debug: bool = False, migrates: bool = False, **made: Any) -> tuple[Evidence, Roots]:
    machine = machine_of("tdx", **made)
    return machine.evidence(binding, debug=debug, migrates=migrates), Roots(intel=machine.root)


def sgx(binding: Binding, debug: bool = False, **made: Any) -> tuple[Evidence, Roots]:
    machine = machine_of("sgx", **made)
    return machine.evidence(binding, debug=debug), Roots(intel=machine.root)


def snp(binding: Binding, report: dict[str, int] | None = None, **made: Any) -> tuple[Evidence, Roots]:
    chip = chip_of(**made)
    return chip.evidence(binding, **(report or {})), Roots(amd=chip.roots)


def nitro(binding: Binding, age: float = 0, debug: bool = False, **made: Any) -> tuple[Evidence, Roots]:
    enclave = enclave_of(**made)
    pcrs = {index: bytes(48) for index in range(3)} if debug else None
    return enclave.evidence(binding, NOW - age, pcrs=pcrs), Roots(aws=enclave.roots)


KINDS = [tdx, sgx, snp, nitro]


def verified(made: tuple[Evidence, Roots], *, asked: Binding = ASKED, now: float = NOW) -> Verified:
    evidence, roots = made
    return verify_evidence(read_evidence(evidence.encoded()), asked, ALLOWED, now, roots)


def refused(made: tuple[Evidence, Roots], **how: Any) -> str:
    with pytest.raises(AttestationRefused) as caught:
        verified(made, **how)
    return caught.value.reason


@pytest.mark.parametrize("make", KINDS)
def test_evidence_that_holds_shows_which_entry_of_the_list_it_meets(make: Any) -> None:
    found = verified(make(ASKED))
    assert (found.entry, found.claims.kind, found.binding) == ("a test", make.__name__, ASKED)
    assert NOW < found.claims.expires <= (BEGINS + 100 * DAY).timestamp()


def test_a_turin_has_its_versions_and_its_name_elsewhere() -> None:
    assert "fmc 1" in verified(snp(ASKED, product="Turin-B0")).shown


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("peer", "another peer", "peer"),
        ("nonce", bytes(32), "nonce"),
        ("digest", "sha256:" + "1" * 64, "model"),
        ("numerics", "n1/int4/auto/rows", "numerics"),
        ("noise_key", bytes(32), "channel"),
    ],
)
def test_what_was_signed_for_something_else_is_refused_by_what_it_was_for(
    make: Any, field: str, value: Any, reason: str
) -> None:
    assert refused(make(msgspec.structs.replace(ASKED, **{field: value}))) == reason
    # Who says that it was signed for this, though it was not:
    evidence, roots = make(msgspec.structs.replace(ASKED, **{field: value}))
    assert refused((msgspec.structs.replace(evidence, binding=ASKED), roots)) == "report_data"


def test_without_a_key_of_the_channel_nothing_is_believed() -> None:
    keyless = msgspec.structs.replace(ASKED, noise_key=b"")
    assert refused(snp(keyless), asked=keyless) == "channel"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (partial(tdx, status="OutOfDate"), "outdated"),
        (partial(tdx, status="SWHardeningNeeded"), "outdated"),
        (partial(tdx, svns=(3,) * 16), "outdated"),
        (partial(tdx, status="Revoked"), "revoked"),
        (partial(tdx, revoked=True), "revoked"),
        (partial(tdx, debug=True), "debug"),
        (partial(tdx, migrates=True), "signature"),
        (partial(tdx, crl_lives=3 * DAY), "expired"),
        (partial(tdx, lives=3 * DAY), "expired"),
        (partial(sgx, status="OutOfDate"), "outdated"),
        (partial(sgx, svns=(3,) * 16), "outdated"),
        (partial(sgx, revoked=True), "revoked"),
        (partial(sgx, debug=True), "debug"),
        (partial(sgx, crl_lives=3 * DAY), "expired"),
        (partial(snp, revoked=True), "revoked"),
        (partial(snp, crl_lives=3 * DAY), "expired"),
        (partial(snp, older=True), "certificates"),
        (partial(snp, report={"policy": 0x30000 | 1 << 19}), "debug"),
        (partial(snp, report={"policy": 0x30000 | 1 << 18}), "debug"),
        (partial(snp, report={"level": 2}), "privilege"),
        (partial(snp, report={"flags": 1 << 2}), "certificates"),
        (partial(snp, report={"flags": 1 << 1}), "certificates"),
        (partial(nitro, debug=True), "debug"),
        (partial(nitro, age=400), "age"),
        (partial(nitro, age=-400), "age"),
        (partial(nitro, issuer_may_issue=False), "certificates"),
    ],
    ids=lambda made: f"{made.func.__name__}-{made.keywords}" if isinstance(made, partial) else made,
)
def test_a_machine_that_is_not_as_it_should_be_is_refused_by_name(make: Any, reason: str) -> None:
    assert refused(make(ASKED)) == reason


@pytest.mark.parametrize("make", KINDS)
def test_certificates_that_end_in_another_root_are_refused(make: Any) -> None:
    evidence, _ = make(ASKED)
    assert refused((evidence, Roots())) == "certificates"


@pytest.mark.parametrize("make", KINDS)
def test_certificates_that_have_expired_are_refused(make: Any) -> None:
    assert refused(make(ASKED), now=(BEGINS + 40 * DAY).timestamp()) == "expired"


@pytest.mark.parametrize("kind", ["tdx", "sgx"])
def test_the_certificates_of_another_machine_of_the_maker_are_refused(kind: Any) -> None:
    machine, other = machine_of(kind), FakeMachine(BEGINS, kind)
    swapped = machine.evidence(ASKED, swapped=other)
    assert refused((swapped, Roots(intel=machine.root))) == "certificates"
    # With all that Intel says of the other one, too, the chain holds, and the signature does not.
    swapped = msgspec.structs.replace(swapped, collateral=other.collateral)
    assert refused((swapped, Roots(intel=other.root))) == "signature"


def test_the_certificates_of_another_chip_are_refused() -> None:
    chip, other = chip_of(), FakeChip(BEGINS)
    swapped = Evidence("snp", ASKED, chip.report(ASKED.report_data), other.collateral.encoded())
    assert refused((swapped, Roots(amd=other.roots))) == "signature"
    mixed = replace_collateral(chip, vcek=other.collateral.vcek)
    assert refused((mixed, Roots(amd=chip.roots))) == "certificates"
    for name in ("ask", "crl"):
        mixed = replace_collateral(chip, **{name: getattr(other.collateral, name)})
        assert refused((mixed, Roots(amd=chip.roots))) == "certificates"


def replace_collateral(chip: FakeChip, **changes: bytes) -> Evidence:
    collateral = msgspec.structs.replace(chip.collateral, **changes)
    return Evidence("snp", ASKED, chip.report(ASKED.report_data), collateral.encoded())


def test_the_chain_of_another_enclave_is_refused() -> None:
    enclave, other = enclave_of(), FakeEnclave(BEGINS)
    document = enclave.document(ASKED.report_data, NOW, bundle=other._bundle)  # pyright: ignore[reportPrivateUsage]
    assert refused((Evidence("nitro", ASKED, document), Roots(aws=other.roots))) == "certificates"


@pytest.mark.parametrize("make", KINDS)
def test_software_that_is_not_on_the_list_is_refused(make: Any) -> None:
    evidence, roots = make(ASKED)
    for allowed in (Measurements(), changed(ALLOWED)):
        with pytest.raises(AttestationRefused) as caught:
            verify_evidence(evidence, ASKED, allowed, NOW, roots)
        assert caught.value.reason == "measurement"


def changed(allowed: Measurements) -> Measurements:
    """The same list of other software."""
    one, other = "f" * 64, "f" * 96
    return Measurements(
        tdx=tuple(msgspec.structs.replace(entry, rt_mr2=other) for entry in allowed.tdx),
        sgx=tuple(msgspec.structs.replace(entry, mr_enclave=one) for entry in allowed.sgx),
        snp=tuple(msgspec.structs.replace(entry, measurement=other) for entry in allowed.snp),
        nitro=tuple(msgspec.structs.replace(entry, pcr2=other) for entry in allowed.nitro),
    )


@pytest.mark.parametrize("component", ["boot_loader", "snp", "microcode", "fmc"])
def test_a_chip_with_older_versions_than_the_list_wants_is_refused(component: str) -> None:
    evidence, roots = snp(ASKED)
    with pytest.raises(AttestationRefused) as caught:
        verify_evidence(evidence, ASKED, Measurements(snp=(allowed_chip(**{component: 255}),)), NOW, roots)
    assert caught.value.reason == "outdated"


def test_a_list_may_allow_what_intel_would_have_configured_otherwise() -> None:
    evidence, roots = tdx(ASKED, status="SWHardeningNeeded")
    entry = msgspec.structs.replace(allowed_machine(), tcb=("UpToDate", "SWHardeningNeeded"))
    assert verify_evidence(evidence, ASKED, Measurements(tdx=(entry,)), NOW, roots).entry == "a test"


@pytest.mark.parametrize("make", KINDS)
def test_no_byte_of_a_quote_can_be_changed(make: Any) -> None:
    evidence, roots = make(ASKED)
    # Behind them are certificates, of which the last is not looked at, and zeros that nothing is made of.
    for place in range(3, 0x2A0 + 48, 43):
        quote = bytearray(evidence.quote)
        quote[place] ^= 1
        assert refused((msgspec.structs.replace(evidence, quote=bytes(quote)), roots))


@pytest.mark.parametrize("make", KINDS)
def test_nonsense_is_refused(make: Any) -> None:
    evidence, roots = make(ASKED)
    for quote in (b"x", evidence.quote[:-1], evidence.quote[:100], bytes(1184), b"\x81" * 30000):
        assert refused((msgspec.structs.replace(evidence, quote=quote), roots))
    if make is not nitro:
        for collateral in (b"", b"{}", b"\xff" * 100, evidence.collateral[:-10]):
            assert refused((msgspec.structs.replace(evidence, collateral=collateral), roots)) == "unreadable"


def test_a_quote_of_one_kind_is_not_taken_for_another() -> None:
    evidence, roots = tdx(ASKED)
    assert refused((msgspec.structs.replace(evidence, kind="sgx"), roots)) == "unreadable"


def test_without_the_library_for_intel_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tdx(ASKED)
    monkeypatch.setitem(sys.modules, "dcap_qvl", None)
    with pytest.raises(UsageError) as caught:
        verified(made)
    assert caught.value.next_command == "pip install 'shoal[attest]'"
    assert verified(snp(ASKED)).entry == "a test"  # all others are verified as before


def test_evidence_that_cannot_be_read_is_a_breach_of_the_protocol() -> None:
    for data in (b"", b"\x00", b"\x94" * 1000, bytes(MAX_EVIDENCE + 1), msgspec.msgpack.encode(["new", 1])):
        with pytest.raises(RemoteProtocolError):
            read_evidence(data)


def test_what_is_shown_names_the_hardware_and_the_entry() -> None:
    found = verified(tdx(ASKED))
    assert found.shown == "tdx: a test (UpToDate)"
    assert replace(found, entry="other").shown == "tdx: other (UpToDate)"
