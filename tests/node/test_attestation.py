"""A node shows what it runs on: where its quotes come from, what goes beside them, and who is answered."""

from __future__ import annotations

import struct
import time
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import cbor2
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from shoal import config
from shoal.errors import UsageError
from shoal.node.attestation import find, quotes
from shoal.node.attestation.answering import (
    FOR_CLIENTS,
    PER_NETWORK,
    PER_PEER,
    WAITING,
    AttestationDesk,
)
from shoal.node.attestation.collateral import (
    FRESH_S,
    RETRY_S,
    CollateralSource,
    fetch_amd,
    read_table,
    vcek_path,
)
from shoal.node.attestation.find import find_quotes
from shoal.node.attestation.nsm import NsmQuotes
from shoal.node.attestation.quotes import GramineQuotes, Quote, QuoteFailed, TsmQuotes
from shoal.node.attestation.start import start_attesting, try_quotes
from shoal.testing.tee.snp import FakeChip
from shoal.testing.tee.source import FakeQuotes, FakeTsm, FixedCollateral
from shoal.trust.attestation.evidence import Binding, read_evidence
from shoal.trust.attestation.snp import read_report
from shoal.wire.messages import Attest, Attested

BEGINS = datetime(2026, 1, 1, tzinfo=UTC)
DATA = bytes(range(64))
GUIDS = {
    "vcek": "63da758d-e664-4564-adc5-f4b93be8accd",
    "ask": "4ab7b379-bbac-4fe4-a02f-05aef327c782",
    "ark": "c0b406a4-a803-4952-9743-3fb6014cd0ae",
}


@cache
def chip(product: str = "Milan-B0") -> FakeChip:
    return FakeChip(BEGINS, product=product)


def table(**certificates: bytes) -> bytes:
    """Certificates as a host puts them beside a report."""
    heads, bodies = b"", b""
    start = 24 * (len(certificates) + 1)
    for name, data in certificates.items():
        heads += uuid.UUID(GUIDS[name]).bytes + struct.pack("<II", start + len(bodies), len(data))
        bodies += data
    return heads + bytes(24) + bodies


@pytest.mark.parametrize(("provider", "kind"), [("tdx_guest", "tdx"), ("sev_guest", "snp")])
def test_the_kernel_gives_quotes_of_both_kinds_of_virtual_machines(provider: str, kind: str) -> None:
    tsm = FakeTsm(provider, lambda data: b"signed " + data, auxiliary=b"beside")
    found = TsmQuotes(tsm).quote(DATA)
    assert (found.kind, found.data) == (kind, b"signed " + DATA)
    assert found.certificates == (b"beside" if kind == "snp" else b"")
    assert tsm.entries == []


def test_what_the_kernel_refuses_is_told() -> None:
    def refuse(data: bytes) -> bytes:
        raise OSError(16, "Device or resource busy")

    tsm = FakeTsm("tdx_guest", refuse)
    with pytest.raises(QuoteFailed, match="Device or resource busy") as caught:
        TsmQuotes(tsm).quote(DATA)
    assert "dmesg" in caught.value.next_command
    assert tsm.entries == []
    with pytest.raises(QuoteFailed, match="arm_cca_guest"):
        TsmQuotes(FakeTsm("arm_cca_guest", lambda data: data)).quote(DATA)


def test_a_request_that_somebody_else_has_written_to_is_not_taken() -> None:
    def meddle(data: bytes) -> bytes:
        tsm.entries[0].write("inblob", bytes(64))
        return data

    tsm = FakeTsm("tdx_guest", meddle)
    with pytest.raises(QuoteFailed, match="somebody else"):
        TsmQuotes(tsm).quote(DATA)


def test_entries_of_the_kernel_are_folders_that_are_gone_afterwards(tmp_path: Path) -> None:
    with quotes.TsmFolder(tmp_path).entry() as entry, suppress(OSError):
        (made,) = tmp_path.iterdir()
        entry.write("inblob", DATA)
        assert entry.read("inblob") == DATA == (made / "inblob").read_bytes()
        (made / "inblob").unlink()  # the kernel's files go with the folder
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(QuoteFailed, match="No such file"):
        TsmQuotes(quotes.TsmFolder(tmp_path / "none")).quote(DATA)


def test_gramine_gives_quotes_as_files(tmp_path: Path) -> None:
    (tmp_path / "quote").write_bytes(b"a quote")
    assert GramineQuotes(tmp_path).quote(DATA) == Quote("sgx", b"a quote")
    assert (tmp_path / "user_report_data").read_bytes() == DATA
    with pytest.raises(QuoteFailed, match="Gramine"):
        GramineQuotes(tmp_path / "none").quote(DATA)


def test_the_nitro_module_is_asked_in_cbor() -> None:
    def answer(request: bytes) -> bytes:
        assert cbor2.loads(request)["Attestation"]["user_data"] == DATA
        return cbor2.dumps({"Attestation": {"document": b"a document"}})

    assert NsmQuotes(Path("none"), answer).quote(DATA) == Quote("nitro", b"a document")
    for bad in (cbor2.dumps({"Error": "InvalidOperation"}), b"\xff", b""):
        with pytest.raises(QuoteFailed, match="Nitro Security Module"):
            NsmQuotes(Path("none"), lambda _, bad=bad: bad).quote(DATA)
    with pytest.raises(QuoteFailed, match="does not answer"):
        NsmQuotes(Path("/none")).quote(DATA)


def test_which_hardware_there_is_is_found_by_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TSM", "GRAMINE", "NSM"):
        monkeypatch.setattr(find, name, tmp_path / name)
    monkeypatch.setattr(find, "OLD_DEVICES", (tmp_path / "old",))
    with pytest.raises(UsageError, match="no hardware that gives quotes"):
        find_quotes()
    (tmp_path / "old").touch()
    with pytest.raises(UsageError, match="too old"):
        find_quotes()
    (tmp_path / "TSM").mkdir()
    assert isinstance(find_quotes(), TsmQuotes)
    (tmp_path / "NSM").touch()
    assert isinstance(find_quotes(), NsmQuotes)
    (tmp_path / "GRAMINE").mkdir()
    (tmp_path / "GRAMINE/quote").touch()
    assert isinstance(find_quotes(), GramineQuotes)


@dataclass
class Service:
    """AMD's, of which ``known`` are the products of which it has our chip."""

    chip: FakeChip
    known: tuple[str, ...]
    asked: list[str] = field(default_factory=list[str])

    def __call__(self, url: str) -> bytes:
        self.asked.append(url.partition("/vcek/v1/")[2])
        product, _, what = self.asked[-1].partition("/")
        given = self.chip.collateral
        if product not in self.known:
            raise OSError("404")
        if what == "crl":
            return given.crl
        if what == "cert_chain":
            both = (x509.load_der_x509_certificate(data) for data in (given.ask, given.ark))
            return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in both)
        return given.vcek


def test_amds_certificates_are_fetched_by_the_chip_and_its_versions() -> None:
    quote = Quote("snp", chip().report(DATA))
    service = Service(chip(), ("Genoa",))
    assert fetch_amd(quote, service) == chip().collateral
    path = f"{chip().chip.hex()}?blSPL=04&teeSPL=00&snpSPL=22&ucodeSPL=213"
    assert service.asked == [f"Milan/{path}", f"Genoa/{path}", "Genoa/cert_chain", "Genoa/crl"]
    report = read_report(chip("Turin-B0").report(DATA))
    assert vcek_path("Turin", report).startswith(f"Turin/{bytes(range(8)).hex()}?fmcSPL=01&blSPL=04")
    with pytest.raises(OSError, match="404"):
        fetch_amd(quote, Service(chip(), ()))


def test_certificates_that_the_host_has_put_beside_a_report_are_taken() -> None:
    given = chip().collateral
    beside = table(vcek=given.vcek, ask=given.ask, ark=given.ark)
    assert dict(read_table(beside)) == {"vcek": given.vcek, "ask": given.ask, "ark": given.ark}
    for cut in (b"", beside[:30], beside[:100], bytes(24), table(vcek=given.vcek)):
        assert len(read_table(cut)) <= 1
    # Its root is none of AMD's products, of which the list of revoked ones would be fetched.
    with pytest.raises(ValueError, match="no root of AMD"):
        fetch_amd(Quote("snp", chip().report(DATA), beside), Service(chip(), ("Milan",)))


def test_what_goes_beside_quotes_is_fetched_every_few_hours() -> None:
    fetched, now = list[bytes](), [0.0]

    def intel(pccs: str, quote: bytes) -> bytes:
        assert pccs == "https://a.cache"
        fetched.append(quote)
        return b"what Intel says"

    source = CollateralSource("https://a.cache", intel=intel, clock=lambda: now[0])
    for at, count in ((0.0, 1), (FRESH_S - 1, 1), (FRESH_S + 1, 2)):
        now[0] = at
        assert source.beside(Quote("tdx", b"a quote")) == b"what Intel says"
        assert len(fetched) == count
    assert source.beside(Quote("nitro", b"brings its own")) == b""


def test_what_goes_beside_quotes_is_kept_where_it_cannot_be_fetched_again() -> None:
    answers = [b"old", None, b"new"]
    now = [0.0]

    def intel(pccs: str, quote: bytes) -> bytes:
        found = answers.pop(0)
        if found is None:
            raise OSError("no route to host")
        return found

    source = CollateralSource("", intel=intel, clock=lambda: now[0])
    quote = Quote("tdx", b"a quote")
    later = FRESH_S + 1
    for at, said in ((0.0, b"old"), (later, b"old"), (later + 1, b"old"), (later + RETRY_S, b"new")):
        now[0] = at
        assert source.beside(quote) == said
    assert answers == []


def test_where_the_maker_cannot_be_reached_the_node_says_so() -> None:
    def broken(*_: Any) -> bytes:
        raise OSError("no route to host")

    source = CollateralSource("", download=broken, intel=broken)
    for kind, data in (("tdx", b"a quote"), ("snp", chip().report(DATA)), ("snp", b"nonsense")):
        with pytest.raises(QuoteFailed, match="cannot be had"):
            source.beside(Quote(kind, data))  # pyright: ignore[reportArgumentType]


async def test_a_node_that_is_not_to_show_anything_looks_for_no_hardware(tmp_path: Path) -> None:
    settings = config.load({}, {"SHOAL_HOME": str(tmp_path)})
    found = await start_attesting(settings)
    assert (found.quotes, found.kind) == (None, None)


def test_hardware_is_tried_before_the_node_joins() -> None:
    source = FakeQuotes("snp", chip().report)
    assert try_quotes(source, FixedCollateral(b"")).kind == "snp"
    assert source.asked == 1

    def refuse(data: bytes) -> bytes:
        raise QuoteFailed("none")

    with pytest.raises(QuoteFailed):
        try_quotes(FakeQuotes("snp", refuse), FixedCollateral(b""))


class Asker:
    """A channel, as far as a desk needs it."""

    def __init__(self, peer: str, host: str) -> None:
        self.peer = peer
        self.host = host
        self.answers = list[tuple[Attested, bytes]]()

    def send_now(self, message: Attested, payload: bytes) -> None:
        self.answers.append((message, payload))

    def reply(self, message: Attested) -> None:
        self.answers.append((message, b""))


def bind(nonce: bytes) -> Binding:
    return Binding("us", nonce, "sha256:" + "0" * 64, "n1/int8/auto/rows", bytes(32))


def elsewhere(number: int) -> str:
    """An address in a network of its own."""
    return f"192.0.{number}.1"


async def asked(
    sign: Callable[[bytes], bytes],
    peers: list[str],
    host: Callable[[int], str] = elsewhere,
    clients: Collection[str] = (),
) -> list[Asker]:
    """What becomes of a question of each of ``peers``, all at once.

    Args:
        host: where the peer with a number comes from.
        clients: who has sessions at the node.
    """
    source = FakeQuotes("snp", sign)
    desk = AttestationDesk(source, FixedCollateral(b"beside"), bind, lambda peer: peer in clients)
    askers = {peer: Asker(peer, host(number)) for number, peer in enumerate(peers)}
    async with trio.open_nursery() as nursery:
        await nursery.start(desk.run)
        for number, peer in enumerate(peers):
            channel: Any = askers[peer]
            await desk.take(channel, Attest(number, bytes(32)), b"")
        with trio.fail_after(10):
            while sum(len(asker.answers) for asker in askers.values()) < len(peers):  # noqa: ASYNC110
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    return list(askers.values())


async def test_who_asks_gets_evidence_for_its_question() -> None:
    (asker,) = await asked(chip().report, ["one"])
    ((answer, payload),) = asker.answers
    evidence = read_evidence(payload)
    assert answer.size == len(payload)
    assert (evidence.binding, evidence.collateral) == (bind(bytes(32)), b"beside")
    assert read_report(evidence.quote).report_data == bind(bytes(32)).report_data


def slow(data: bytes) -> bytes:
    time.sleep(0.002)  # in a thread, as hardware takes its time
    return chip().report(data)


def answered(askers: list[Asker]) -> set[str]:
    return {asker.peer for asker in askers if not asker.answers[0][0].refused}


FLOOD = [f"peer {number}" for number in range(WAITING + 4)]


async def test_a_flood_of_questions_is_refused() -> None:
    one = await asked(slow, ["one"] * 5)
    assert sum(not answer.refused for answer, _ in one[0].answers) == PER_PEER
    assert answered(await asked(slow, FLOOD)) == set(FLOOD[: WAITING - FOR_CLIENTS])


async def test_many_peers_from_one_network_leave_places_to_others() -> None:
    from_one = await asked(
        slow, [*FLOOD, "other"], lambda n: f"192.0.2.{n}" if n < len(FLOOD) else "2001:db8::1"
    )
    assert answered(from_one) == {*FLOOD[:PER_NETWORK], "other"}


async def test_peers_with_sessions_have_places_that_strangers_cannot_take() -> None:
    found = await asked(slow, [*FLOOD, "client"], clients=["client"])
    assert answered(found) == {*FLOOD[: WAITING - FOR_CLIENTS], "client"}
    beside = await asked(slow, [*FLOOD, "client"], lambda _: "192.0.2.1", ["client"])
    assert answered(beside) == {*FLOOD[:PER_NETWORK], "client"}
    clients = await asked(slow, FLOOD, clients=FLOOD)
    assert answered(clients) == set(FLOOD[:WAITING])


async def test_hardware_that_fails_is_told_and_does_not_end_the_node() -> None:
    def refuse(data: bytes) -> bytes:
        raise QuoteFailed("the hardware is busy")

    (asker,) = await asked(refuse, ["one"])
    assert asker.answers[0][0].refused == "the hardware is busy"
