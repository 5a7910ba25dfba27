"""Credits on the disk, in whose name a client asks, and what `shoal credits` shows of it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import msgspec
import pytest

from shoal.errors import BadLedgerFile, RemoteProtocolError
from shoal.ledger.credits import credit_book, credit_file
from shoal.ledger.credits.acknowledgement import MAX_SHOWN, acknowledge
from shoal.ledger.credits.claim import CLAIM_S, check_claim_of, claim, read_word
from shoal.ledger.credits.credit_book import CreditBook
from shoal.ledger.credits.credit_file import CreditFile, KeptCredits
from shoal.net.identity import Identity, verify
from shoal.types import PeerId
from tests.cli.conftest import Shoal, home, shoal

__all__ = ["home", "shoal"]

NOW = 1_000_000.0
NODE, GIVER, CLIENT = Identity.ephemeral(), Identity.ephemeral(), PeerId("client")


def test_what_two_processes_note_is_all_there(tmp_path: Path) -> None:
    node, client = CreditFile.of(tmp_path, "home"), CreditFile.of(tmp_path, "home")
    assert node.read() == KeptCredits()
    assert client.served_by(GIVER.peer, 30) == 30
    word = acknowledge(GIVER.sign, GIVER.peer, NODE.peer, 7)
    node.change(lambda kept: kept.with_word(word))
    assert client.served_by(GIVER.peer, 12) == 42
    kept = CreditFile.of(tmp_path, "home").read()
    assert kept.book.peers[GIVER.peer].given == 42
    assert kept.words == {GIVER.peer: word}
    assert CreditFile.of(tmp_path, "other").read() == KeptCredits()


def test_a_damaged_file_is_told_and_not_guessed(tmp_path: Path) -> None:
    file = CreditFile.of(tmp_path, "home")
    file.served_by(GIVER.peer, 30)
    file.path.write_bytes(file.path.read_bytes().replace(b"30", b"99"))
    with pytest.raises(BadLedgerFile, match="checksum"):
        file.read()


def test_the_newest_word_counts_and_of_too_many_the_smallest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credit_file, "MAX_PEERS", 3)
    kept = KeptCredits()
    for units in (5, 9, 7, 8):
        kept = kept.with_word(acknowledge(GIVER.sign, PeerId(f"peer {units}"), NODE.peer, units))
    assert sorted(word.units for word in kept.words.values()) == [7, 8, 9]
    older = acknowledge(GIVER.sign, PeerId("peer 9"), NODE.peer, 6)
    assert kept.with_word(older) is kept


def test_no_more_words_are_shown_than_are_read() -> None:
    kept = KeptCredits()
    for units in range(1, 2 * MAX_SHOWN):
        kept = kept.with_word(acknowledge(GIVER.sign, PeerId(f"peer {units}"), NODE.peer, units))
    shown = kept.shown()
    assert len(shown) == MAX_SHOWN
    assert min(word.units for word in shown) == MAX_SHOWN


def test_the_word_of_one_peer_is_used_up_by_so_many_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credit_book, "MAX_REDEEMED", 2)
    book = CreditBook().gave_us(GIVER.peer, 1000)
    for name in ("a", "b", "c"):
        book = book.took(PeerId(name), "host", 10, {GIVER.peer: 10}, NOW)
    assert set(book.peers[GIVER.peer].redeemed) == {"a", "b"}
    assert book.hosts["host"].units == 10


def test_a_client_asks_in_the_name_of_a_node_that_has_signed_for_it_for_a_day() -> None:
    word = acknowledge(GIVER.sign, GIVER.peer, NODE.peer, 7)
    shown = claim(NODE.sign, NODE.peer, CLIENT, (word,), NOW)
    assert check_claim_of(shown, CLIENT, verify, NOW) == {GIVER.peer: 7}
    with pytest.raises(RemoteProtocolError, match="not signed"):
        check_claim_of(shown, PeerId("another"), verify, NOW)
    with pytest.raises(RemoteProtocolError, match="does not hold now"):
        check_claim_of(shown, CLIENT, verify, NOW + CLAIM_S)
    forever = msgspec.structs.replace(shown, expires=NOW + 10 * CLAIM_S)
    with pytest.raises(RemoteProtocolError, match="does not hold now"):
        check_claim_of(forever, CLIENT, verify, NOW)
    with pytest.raises(RemoteProtocolError, match="no acknowledgement"):
        read_word(b"\xc1")


def test_the_command_shows_who_gave_and_who_took(shoal: Shoal, home: Path) -> None:
    assert "nobody has given" in shoal("credits").out
    file = CreditFile.of(home / "credits", "home")
    file.served_by(GIVER.peer, 5000)
    now = time.time()
    file.change(
        lambda kept: msgspec.structs.replace(kept, book=kept.book.took(CLIENT, "198.51.100.7", 300, {}, now))
    )
    found = json.loads(shoal("credits", "--json").out)
    (row,) = found["peers"]
    assert (row["peer"], row["given"], row["taken"], row["balance"]) == (GIVER.peer, 5000, 0, 5000)
    (host,) = found["without_credit"]
    assert host["host"] == "198.51.100.7"
    assert 299 <= host["taken"] <= 300
    shown = shoal("credits").out
    assert "5,000" in shown
    assert "198.51.100.7" in shown
