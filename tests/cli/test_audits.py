"""`shoal audits`: what is remembered of audits, and taken back."""

from __future__ import annotations

import time
from pathlib import Path

from shoal.net.identity import Identity
from shoal.swarm.audit_book import AuditBook
from shoal.swarm.names import name_of
from shoal.trust.audit_record import Conviction

from .conftest import Shoal

OLD, NEW = (Identity.from_seed(bytes([number]) * 32).peer for number in (1, 2))


def test_what_audits_found_is_shown_and_can_be_taken_back(shoal: Shoal, home: Path) -> None:
    assert "nobody was found out" in shoal("audits").out
    book, now = AuditBook(home / "audits.json"), time.time()
    for peer, at in ((OLD, now - 20 * 86400), (NEW, now - 60)):
        found = Conviction(peer, at, "sha256:" + "a" * 64, 2, 4)
        book.change(lambda record, found=found: (record.convict(found), None))
    book.change(lambda record: (record.with_account(record.account.answered(100, 6).pay(24)), None))
    data = shoal("audits", "--json").data
    assert data["share"] == 0.04
    assert [(one["peer"], one["avoided"]) for one in data["found"]] == [(OLD, False), (NEW, True)]
    shown = shoal("audits").out
    assert name_of(NEW) in shown and "no longer" in shown and "4.0%" in shown
    assert shoal("audits", "--forget", "nobody").code == 2
    assert NEW in shoal("audits", "--forget", name_of(NEW)).err
    assert [one["peer"] for one in shoal("audits", "--json").data["found"]] == [OLD]
    assert "canar" not in shoal("audits").out
    book.change(lambda record: (record.with_account(record.account.pay_canary(6)), None))
    for result in ("same", "cheat", "failed"):
        book.change(lambda record, result=result: (record.count_canary(result), None))
    book.change(lambda record: (record.convict(Conviction(NEW, now, canary=True)), None))
    data = shoal("audits", "--json").data
    counts = {"sent": 3, "same": 1, "cheat": 1, "open": 0, "failed": 1, "share": 0.01}
    assert (data["share"], data["canaries"], data["found"][-1]["canary"]) == (0.05, counts, True)
    shown = " ".join(shoal("audits").out.split())
    assert "1.0% of it for canaries; 3 canaries were sent, 1 found somebody out, 1 had no clear end" in shown
    (home / "audits.json").write_text("no")
    assert "delete it" in shoal("audits").err
