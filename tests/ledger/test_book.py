"""Accounts on the disk: there before they count, and told when they are damaged."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3
from filelock import BaseFileLock, FileLock

from shoal.errors import BadLedgerFile, Busy, OutOfResources, UsageError, VoucherRefused
from shoal.ledger.vouchers import book as module
from shoal.ledger.vouchers.book import PaymentBook
from shoal.ledger.vouchers.keys import recover
from shoal.ledger.vouchers.payee import PayeeAccount, charge, take_voucher
from shoal.ledger.vouchers.payer import PayerAccount
from tests.ledger.test_vouchers import CHANNEL, payee, payer, voucher


@pytest.fixture
def book(tmp_path: Path) -> PaymentBook[PayeeAccount]:
    book = PaymentBook(tmp_path / "payee", PayeeAccount)
    book.add(payee())
    return book


def file_of(book: PaymentBook[PayeeAccount]) -> Path:
    (found,) = book._folder.glob("*.account")
    return found


def test_what_was_taken_is_there_after_a_restart(book: PaymentBook[PayeeAccount], tmp_path: Path) -> None:
    taken = book.change(CHANNEL, lambda account: take_voucher(account, voucher(100), recover))
    again = PaymentBook(tmp_path / "payee", PayeeAccount)
    assert again.read(CHANNEL) == taken
    assert again.channel_ids() == [CHANNEL]
    assert taken.voucher == voucher(100)


def test_a_payers_account_is_kept_in_the_same_way(tmp_path: Path) -> None:
    book = PaymentBook(tmp_path, PayerAccount)
    book.add(payer(deposit=1 << 127))
    assert book.read(CHANNEL).deposit == 1 << 127


def test_an_account_of_an_earlier_release_is_read_which_had_a_price(tmp_path: Path) -> None:
    book = PaymentBook(tmp_path, PayerAccount)
    book.add(payer())
    (path,) = tmp_path.glob("*.account")
    body = path.read_bytes().split(b"\n")[1].removesuffix(b"}") + b',"price":0}'
    path.write_bytes(blake3(body).hexdigest().encode() + b"\n" + body + b"\n")
    assert book.read(CHANNEL) == payer()


def test_where_the_disk_cannot_tell_whether_a_channel_is_kept_nobody_takes_it_for_a_new_one(
    tmp_path: Path,
) -> None:
    book = PaymentBook(tmp_path / ("x" * 300), PayeeAccount)  # a name that no folder can have
    with pytest.raises(OutOfResources, match="too long"):
        assert CHANNEL in book


def test_a_payment_channel_is_begun_once_and_must_be_known(book: PaymentBook[PayeeAccount]) -> None:
    with pytest.raises(UsageError, match="already"):
        book.add(payee())
    with pytest.raises(UsageError, match="no payment channel"):
        book.read(b"\1" * 32)


def test_whether_one_is_kept_is_known_without_a_look_at_the_others(
    book: PaymentBook[PayeeAccount], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "glob", None)
    assert CHANNEL in book
    assert b"\1" * 32 not in book


def test_no_more_are_kept_than_there_is_a_bound(
    book: PaymentBook[PayeeAccount], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ACCOUNTS", 1)
    with pytest.raises(UsageError, match="already"):
        book.add(payee(channel_id=b"\1" * 32))


def test_what_is_named_otherwise_is_no_payment_channel(book: PaymentBook[PayeeAccount]) -> None:
    for name in ("notes", CHANNEL.hex()[:-2], CHANNEL.hex() + "00", f"{CHANNEL.hex()} (copy)", "zz" * 32):
        (book._folder / f"{name}.account").write_bytes(b"x")
    assert book.channel_ids() == [CHANNEL]


def test_a_refused_voucher_changes_nothing(book: PaymentBook[PayeeAccount]) -> None:
    before = file_of(book).read_bytes()
    with pytest.raises(VoucherRefused):
        book.change(CHANNEL, lambda account: take_voucher(account, voucher(10_001), recover))
    assert file_of(book).read_bytes() == before


def test_a_file_is_let_go_of_at_once_and_not_when_garbage_is_collected(
    book: PaymentBook[PayeeAccount], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_WITHIN_S", 0.05)
    monkeypatch.setattr(BaseFileLock, "__del__", lambda lock: None)
    with pytest.raises(VoucherRefused) as kept:
        book.change(CHANNEL, lambda account: take_voucher(account, voucher(10_001), recover))
    assert book.change(CHANNEL, lambda account: charge(account, 7)).owed_micro == 7
    assert kept.value.reason == "over deposit"


def test_every_damaged_file_is_told_and_never_read_as_another(book: PaymentBook[PayeeAccount]) -> None:
    path = file_of(book)
    whole = path.read_bytes()
    damaged = [b"", whole[:-2], whole[: len(whole) // 2], b"\0" * len(whole), whole * 200, whole + b" "]
    damaged += [whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1 :] for n in range(0, len(whole) - 1, 7)]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(BadLedgerFile) as told:
            book.read(CHANNEL)
        assert told.value.check and told.value.next_command
    path.write_bytes(whole)
    path.rename(path.with_name(f"{'01' * 32}.account"))
    with pytest.raises(BadLedgerFile, match="another payment channel"):
        book.read(b"\1" * 32)


def test_a_payers_file_is_no_payees(tmp_path: Path) -> None:
    PaymentBook(tmp_path, PayerAccount).add(payer())
    with pytest.raises(BadLedgerFile):
        PaymentBook(tmp_path, PayeeAccount).read(CHANNEL)


def test_when_the_disk_fails_the_old_account_stays_whole(
    book: PaymentBook[PayeeAccount], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(module.OutOfResources):
        book.change(CHANNEL, lambda account: charge(account, 7))
    assert book.read(CHANNEL) == payee()
    assert not list(book._folder.glob(".*"))


def test_another_process_that_holds_a_file_is_waited_for_but_not_for_ever(
    book: PaymentBook[PayeeAccount], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_WITHIN_S", 0.05)
    with FileLock(file_of(book).with_suffix(".lock")), pytest.raises(Busy):
        book.change(CHANNEL, lambda account: account)


def charge_often(folder: Path) -> None:
    book = PaymentBook(folder, PayeeAccount)
    for _ in range(50):
        book.change(CHANNEL, lambda account: charge(account, 1))


def test_two_processes_lose_nothing_of_each_other(book: PaymentBook[PayeeAccount]) -> None:
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=charge_often, args=(book._folder,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert book.read(CHANNEL).owed_micro == 100


def test_the_file_says_what_it_is_in_words(book: PaymentBook[PayeeAccount]) -> None:
    _, body, _ = file_of(book).read_bytes().split(b"\n")
    assert msgspec.json.decode(body)["type"] == "payee"
