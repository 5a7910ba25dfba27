"""What the page plots of money: what payment channels grew by, hour by hour."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from shoal.errors import BadLedgerFile
from shoal.gateway.access.keys import KeyLimits, create
from shoal.gateway.page import money
from shoal.gateway.page.money import HOUR_S, KEPT_HOURS, ChannelSums, MoneyHistory, MoneyHour, read_sums
from shoal.ledger.settling import PaymentBooks
from tests.ledger.test_vouchers import payee, payer, voucher

from .conftest import kept_in, served

MUCH = 1 << 120


class Books:
    """Payment channels that grow, and the hour in which somebody looks."""

    def __init__(self, name="0a") -> None:
        self.name, self.hour = name, 5000
        self.say({}, {})

    def say(self, earned, spent) -> None:
        self.sums = ChannelSums(self.name, earned, spent)

    def history(self, database) -> MoneyHistory:
        return MoneyHistory(database, lambda: self.sums, lambda: self.hour * HOUR_S + 7.0)


async def test_what_channels_grow_by_counts_in_its_hour_to_the_last_wei_and_outlives_a_restart(database):
    books = Books()
    history = books.history(database)
    history.note()
    for hour, earned, spent in ((5000, 40, 0), (5000, MUCH, 0), (5002, MUCH + 1, 9)):
        books.hour = hour
        books.say({"a": earned}, {"a": spent})
        history.note()
    kept = [MoneyHour(5000, MUCH, 0), MoneyHour(5002, 1, 9)]
    assert history.shown() == kept
    # Another channel begins at nothing; one that is gone takes nothing with it.
    books.say({"b": 30}, {"a": 9})
    books.history(database).note()
    assert history.shown() == [kept[0], MoneyHour(5002, 31, 9)]


async def test_what_was_there_before_anybody_looked_is_of_no_hour(database):
    books = Books()
    books.say({"a": 100}, {"b": 50})
    history = books.history(database)
    history.note()
    assert history.shown() == [MoneyHour(5000, 0, 0)]
    books.say({"a": 103}, {"b": 50})
    history.note()
    assert history.shown() == [MoneyHour(5000, 3, 0)]


async def test_each_machine_of_a_shared_database_begins_for_itself_and_all_are_added_up(database):
    one, other = Books("0a"), Books("0b")
    one.history(database).note()
    one.say({"a": 7}, {})
    one.history(database).note()
    # The same payment channel, which one machine pays and the other is paid over.
    other.say({"b": MUCH}, {"a": MUCH})
    other.history(database).note()
    assert other.history(database).shown() == [MoneyHour(5000, 7, 0)]
    other.say({"b": MUCH + 2}, {"a": MUCH + 1})
    other.history(database).note()
    one.history(database).note()
    assert one.history(database).shown() == [MoneyHour(5000, 9, 1)]


async def test_channels_that_are_gone_are_known_for_as_long_as_there_is_room(database, monkeypatch):
    monkeypatch.setattr(money, "KEPT_GONE", 1)
    books, other = Books("0a"), Books("0b")
    for machine in (books, other):
        machine.history(database).note()
        machine.say({"a": 5, "b": 40, "c": 1}, {})
        machine.history(database).note()
    # What cannot be read is not gone, and what is emptied and filled again counts from where it was.
    for earned in ({"c": None}, {"c": 1, "b": 41}):
        books.say(earned, {})
        books.history(database).note()
    assert books.history(database).shown() == [MoneyHour(5000, 93, 0)]
    with database.transaction() as found:
        names = [name for (name,) in found.execute("SELECT channel FROM money_seen").fetchall()]
    assert sorted(name for name in names if ":paid:" in name) == [
        "0a:paid:b",
        "0a:paid:c",
        *(f"0b:paid:{n}" for n in "abc"),
    ]


async def test_a_month_is_kept_and_no_more(database):
    books = Books()
    history = books.history(database)
    history.note()
    books.hour += KEPT_HOURS
    assert history.shown() == []
    history.note()
    with database.transaction() as found:
        assert found.execute("SELECT hour FROM money").fetchall() == [(books.hour,)]


def test_both_sides_books_are_read_and_a_damaged_one_stops_no_other(tmp_path: Path) -> None:
    books_name = read_sums(tmp_path / "payments").books
    assert read_sums(tmp_path / "payments") == ChannelSums(books_name, {}, {})
    assert read_sums(tmp_path / "others").books != books_name
    books = PaymentBooks.below(tmp_path / "payments")
    books.paid.add(payee(voucher=voucher(300)))
    books.paying.add(payer(voucher=voucher(200)))
    name = payer().channel_id.hex()
    (tmp_path / "payments/paid" / f"{'0' * 64}.account").write_bytes(b"x")
    assert read_sums(tmp_path / "payments") == ChannelSums(
        books_name, {name: 300, "0" * 64: None}, {name: 200}
    )
    (tmp_path / "payments/books.name").write_bytes(b"x")
    with pytest.raises(BadLedgerFile, match="is damaged"):
        read_sums(tmp_path / "payments")


@pytest.mark.parametrize("admin", [True, False])
async def test_what_a_machine_has_earned_an_administrator_alone_is_told(tmp_path, checkpoint, admin):
    path = kept_in(tmp_path)
    key, _ = create(path, "Ada", KeyLimits(), admin=admin)
    with trio.fail_after(60):
        async with served(tmp_path, checkpoint, database=path) as gateway:
            money = gateway.gateway.money
            await money.database.run(money.note)
            answer = await gateway.http.get("/api/money", headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == (200 if admin else 403)
            if admin:
                (hour,) = answer.json()["hours"]
                assert (hour["earned"], hour["spent"]) == ("0", "0")
            assert (await gateway.http.get("/api/money")).status_code == 401
