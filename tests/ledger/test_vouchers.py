"""What is signed and what is believed: as x402 has it, and by name refused where it is not so."""

from __future__ import annotations

import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.client.paying.terms import HopBill
from shoal.client.paying.voucher_payer import _Paying
from shoal.client.paying.work import HopWork, RingWork
from shoal.errors import PaymentRequired, PaymentStopped, UsageError, VoucherRefused
from shoal.ledger.vouchers.keys import HALF_ORDER, ChainKey, recover
from shoal.ledger.vouchers.payee import (
    MICRO,
    PayeeAccount,
    charge,
    check_credit,
    take_voucher,
)
from shoal.ledger.vouchers.payer import (
    PayerAccount,
    amount_due,
    catch_up,
    note_signed,
    stop_reason,
)
from shoal.ledger.vouchers.typed_data import MAX_UINT128, parse_address, show_address
from shoal.ledger.vouchers.voucher import (
    PaymentTerms,
    Voucher,
    escrow_domain,
    sign_voucher,
    voucher_digest,
)
from shoal.swarm.announcement import AskedPrice
from shoal.types import PeerId

ORDER = 2 * HALF_ORDER + 1
PAYER, PAYEE = ChainKey.from_secret(b"\1" * 32), ChainKey.from_secret(b"\2" * 32)
DOMAIN = escrow_domain(31337, b"\x42" * 20)
TERMS = PaymentTerms(
    payer=PAYER.address, payer_signer=PAYER.address, payee=PAYEE.address, payee_signer=PAYEE.address
)
CHANNEL = TERMS.channel_id(DOMAIN)
replace = msgspec.structs.replace


def payee(**changes: object) -> PayeeAccount:
    account = PayeeAccount(
        terms=TERMS, domain=DOMAIN, channel_id=CHANNEL, deposit=10_000, window=500, least=10
    )
    return replace(account, **changes)


def payer(**changes: object) -> PayerAccount:
    account = PayerAccount(terms=TERMS, domain=DOMAIN, channel_id=CHANNEL, deposit=10_000, budget=10_000)
    return replace(account, **changes)


def voucher(amount: int, key: ChainKey = PAYER) -> Voucher:
    return sign_voucher(key, DOMAIN, CHANNEL, amount)


def refused(account: PayeeAccount, given: Voucher) -> str:
    with pytest.raises(VoucherRefused) as refusal:
        take_voucher(account, given, recover)
    return refusal.value.reason


def test_types_and_hashes_are_those_of_x402() -> None:
    from eth_account import Account
    from eth_account.messages import encode_typed_data
    from x402.mechanisms.evm.batch_settlement import constants, types, utils

    config = types.ChannelConfig(
        payer=show_address(TERMS.payer),
        payer_authorizer=show_address(TERMS.payer_signer),
        receiver=show_address(TERMS.payee),
        receiver_authorizer=show_address(TERMS.payee_signer),
        token=show_address(TERMS.token),
        withdraw_delay=TERMS.delay_s,
        salt="0x" + TERMS.salt.hex(),
    )
    theirs = escrow_domain(31337, parse_address(constants.BATCH_SETTLEMENT_ADDRESS))
    assert "0x" + TERMS.channel_id(theirs).hex() == utils.compute_channel_id(config, "eip155:31337")
    ours = sign_voucher(PAYER, theirs, CHANNEL, 1234)
    message = encode_typed_data(
        utils.get_batch_settlement_eip712_domain(31337),
        constants.VOUCHER_TYPES,
        {"channelId": CHANNEL, "maxClaimableAmount": 1234},
    )
    assert Account.recover_message(message, signature=ours.signature) == show_address(PAYER.address)
    assert Account.sign_message(message, PAYER.secret).signature == ours.signature


def test_an_address_is_read_as_it_is_shown_and_a_slip_is_seen() -> None:
    shown = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"  # of EIP-55
    address = parse_address(shown)
    assert show_address(address) == shown
    assert parse_address(shown.lower()) == address
    for wrong in (shown.replace("aA", "Aa"), shown[:-1], "0x" + "g" * 40, "", "0x" + " 5" * 20):
        with pytest.raises(UsageError):
            parse_address(wrong)


def test_a_key_is_not_shown() -> None:
    assert "secret" not in repr(PAYER)
    assert PAYER.secret.hex() not in repr(PAYER)


def test_signing_and_checking_take_little_but_too_much_for_a_step() -> None:
    began = time.thread_time()
    made = [voucher(n) for n in range(1, 101)]
    signed = time.thread_time()
    assert all(recover(one.digest, one.signature) == PAYER.address for one in made)
    checked = time.thread_time()
    print(f"a voucher: {(signed - began) * 10:.2f} ms to sign, {(checked - signed) * 10:.2f} ms to check")
    assert checked - began < 1.0  # 0.3 ms the two, where in pure Python one takes 10


def test_the_other_form_of_a_signature_is_nobodys() -> None:
    good = voucher(100)
    s = int.from_bytes(good.signature[32:64], "big")
    other = good.signature[:32] + (ORDER - s).to_bytes(32, "big") + bytes([55 - good.signature[64]])
    assert recover(good.digest, good.signature) == PAYER.address
    assert recover(good.digest, other) is None


@given(st.binary(min_size=60, max_size=70), st.binary(min_size=32, max_size=32))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_nobodys_signature(signature: bytes, digest: bytes) -> None:
    assert recover(digest, signature) != PAYER.address


# --- What a payee takes and what it refuses, each by its name.


def test_the_newest_voucher_is_worth_all_before_it() -> None:
    account = take_voucher(payee(), voucher(100), recover)
    account = take_voucher(account, voucher(400), recover)
    assert (account.paid, account.unredeemed) == (400, 400)


def test_an_old_voucher_and_one_that_came_before_are_refused() -> None:
    account = take_voucher(payee(), voucher(400), recover)
    assert refused(account, voucher(100)) == "stale"
    assert refused(account, voucher(400)) == "replayed"


def test_a_voucher_of_another_chain_contract_or_channel_is_refused() -> None:
    account = payee()
    others = {
        "other chain": sign_voucher(PAYER, other_domain(chain_id=1), CHANNEL, 100),
        "other contract": sign_voucher(PAYER, other_domain(contract=b"\x43" * 20), CHANNEL, 100),
        "other channel": sign_voucher(PAYER, DOMAIN, b"\x44" * 32, 100),
    }
    assert {reason: refused(account, one) for reason, one in others.items()} == {r: r for r in others}


def other_domain(**changes: object):
    return replace(DOMAIN, **changes)


def test_a_voucher_of_another_chain_that_says_it_is_of_this_one_was_signed_by_nobody_here() -> None:
    elsewhere = sign_voucher(PAYER, other_domain(chain_id=1), CHANNEL, 100)
    assert refused(payee(), replace(elsewhere, chain_id=31337)) == "signature"


def test_money_of_one_channel_cannot_be_spent_in_another() -> None:
    other_terms = replace(TERMS, salt=b"\7" * 32)
    other = payee(terms=other_terms, channel_id=other_terms.channel_id(DOMAIN))
    spent = voucher(100)
    assert take_voucher(payee(), spent, recover).paid == 100
    assert refused(other, spent) == "other channel"
    assert refused(other, replace(spent, channel_id=other.channel_id)) == "signature"


def test_more_than_the_deposit_or_than_the_contract_can_count_is_refused() -> None:
    assert refused(payee(), voucher(10_001)) == "over deposit"
    too_much = replace(voucher(100), amount_bytes=(MAX_UINT128 + 1).to_bytes(17, "big"))
    assert refused(payee(deposit=MAX_UINT128), too_much) == "overflow"
    with pytest.raises(OverflowError):
        voucher_digest(DOMAIN, CHANNEL, MAX_UINT128 + 1)


def test_dust_is_refused_unless_it_pays_all() -> None:
    assert refused(payee(owed_micro=100 * MICRO), voucher(9)) == "dust"
    assert take_voucher(payee(owed_micro=9 * MICRO), voucher(9), recover).paid == 9


def test_a_stranger_cannot_pay_in_the_payers_name() -> None:
    assert refused(payee(), voucher(100, PAYEE)) == "signature"


@given(st.integers(0, MAX_UINT128), st.integers(0, 12_000))
@settings(max_examples=200, deadline=None)
def test_whatever_is_taken_adds_to_what_was_paid_and_is_covered(amount: int, before: int) -> None:
    account = payee(least=1)
    if 0 < before <= account.deposit:
        account = take_voucher(account, voucher(before), recover)
    try:
        after = take_voucher(account, voucher(amount), recover)
    except VoucherRefused:
        assert amount <= account.paid or amount > account.deposit
    else:
        assert account.paid < after.paid == amount <= account.deposit


# --- When a payee serves, and when it waits.


def test_a_payee_serves_on_credit_up_to_its_window_then_waits_and_goes_on_when_it_is_paid() -> None:
    account = charge(payee(), 500 * MICRO)
    with pytest.raises(PaymentRequired) as waits:
        check_credit(account, 1, now=0)
    assert waits.value.reason == "unpaid"
    account = take_voucher(account, voucher(300), recover)
    check_credit(account, 300 * MICRO, now=0)
    with pytest.raises(PaymentRequired):
        check_credit(account, 301 * MICRO, now=0)


def test_a_payee_serves_no_more_than_is_in_escrow() -> None:
    account = charge(payee(deposit=100), 100 * MICRO)
    with pytest.raises(PaymentRequired) as waits:
        check_credit(account, 1, now=0)
    assert waits.value.reason == "over deposit"
    check_credit(replace(account, deposit=200), 100 * MICRO, now=0)


def test_a_payee_stops_long_before_the_payer_may_take_all_back_so_that_clocks_may_be_apart() -> None:
    account = payee(closes_at=TERMS.delay_s)
    check_credit(account, 1, now=0)
    for apart_s in (0, 3600):
        with pytest.raises(PaymentRequired) as waits:
            check_credit(account, 1, now=TERMS.delay_s / 2 + apart_s)
        assert waits.value.reason == "closing"


# --- What a payer signs for.


def test_a_payer_signs_for_what_is_claimed_as_far_as_it_may_be_owed_and_never_for_less_than_before() -> None:
    assert amount_due(payer(), claimed_micro=80 * MICRO + 1, most_micro=90 * MICRO) == 80
    assert amount_due(payer(), claimed_micro=80 * MICRO, most_micro=70 * MICRO) == 70
    account = note_signed(payer(), voucher(80))
    assert amount_due(account, claimed_micro=0, most_micro=0) == 80
    with pytest.raises(ValueError, match="less"):
        note_signed(account, voucher(79))


def why(account: PayerAccount, claimed: int, most: int, **given: bool) -> str | None:
    said = {"waiting": True, "again": False} | given
    return stop_reason(account, claimed * MICRO, most * MICRO, 50, **said)


@pytest.mark.parametrize("limit", ["budget", "deposit"])
def test_a_payer_stops_at_its_budget_after_spending_all_of_it(limit: str) -> None:
    account = payer(**{limit: 100})
    assert amount_due(account, claimed_micro=120 * MICRO, most_micro=200 * MICRO) == 100
    account = note_signed(account, voucher(100))
    assert why(account, 120, 200) == "budget spent"
    assert why(account, 120, 200, waiting=False) is None
    assert why(account, 100, 200) is None
    assert why(account, 100, 200, again=True) == "budget spent"  # it wants more than is left
    assert why(note_signed(payer(), voucher(100)), 100, 200, again=True) is None


def test_a_payee_that_claims_more_than_it_may_be_owed_is_not_paid_for_it() -> None:
    account = note_signed(payer(), voucher(amount_due(payer(), 521 * MICRO, 520 * MICRO)))
    assert account.signed == 520
    assert why(account, 521, 520) == "overcharged"
    assert why(account, 521, 520, waiting=False) is None
    assert why(account, 520, 520) is None


def test_a_payer_that_lost_its_file_takes_the_newest_voucher_from_the_payee() -> None:
    account = catch_up(payer(), voucher(300), recover)
    assert (account.signed, account.received_micro) == (300, 300 * MICRO)
    assert amount_due(account, 320 * MICRO, 320 * MICRO) == 320
    assert catch_up(account, voucher(200), recover) == account


@pytest.mark.parametrize(
    "forged",
    [
        voucher(300, PAYEE),
        voucher(10_001),
        sign_voucher(PAYER, DOMAIN, b"\x44" * 32, 300),
        replace(voucher(300), amount_bytes=b"\x01" * 32),
    ],
)
def test_a_forged_voucher_is_not_taken_back(forged: Voucher) -> None:
    with pytest.raises(PaymentStopped) as stopped:
        catch_up(payer(), forged, recover)
    assert stopped.value.reason == "forged"


def test_a_payer_that_vanishes_in_the_middle_of_an_answer_leaves_a_window_unpaid_at_most() -> None:
    account, served = payee(window=100), 0
    with pytest.raises(PaymentRequired):
        while True:
            check_credit(account, 7 * MICRO, now=0)
            account, served = charge(account, 7 * MICRO), served + 7
    assert 0 < served - account.paid <= 100


# --- Both together, with whatever may happen between them.

WINDOW = 100
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["serve", "lose the result"]), st.integers(1, 40)),
        st.tuples(st.just("overcharge"), st.integers(1, 400)),
        st.tuples(st.sampled_from(["pay", "lose the voucher", "payer dies", "payee dies"]), st.just(0)),
    ),
    max_size=60,
)


PRICE = AskedPrice(MICRO, WINDOW, PAYEE.address, DOMAIN.chain_id, DOMAIN.contract)
"""At which a token of one block costs 1."""


class Both:
    """What each side knows; the payer counts as a client does. What dies goes on from its disk, where the
    payer's account is always."""

    def __init__(self, payer: PayerAccount, payee: PayeeAccount) -> None:
        self.payer = payer
        self.payee = self.payee_disk = payee
        self.served = 0
        self.came = 0
        """Of that, what has come back to the payer."""
        self.why: str | None = None
        """What the payer last said."""
        self.payer_dies()

    def serve(self, tokens: int, comes: bool) -> None:
        check_credit(self.payee, tokens * MICRO, now=0)
        self.payee = charge(self.payee, tokens * MICRO)
        self.ring.sent(self.served, tokens)
        if comes:
            self.ring.came_back(self.served)
        self.served += tokens
        self.came += tokens * comes

    def pay(self, arrives: bool, more: int = 0) -> None:
        """The payee claims what it is owed, and ``more``."""
        bill = HopBill(PeerId("node"), PRICE, 1, self.work, None)
        most = self.paying.most_micro + bill.most_micro(WINDOW * MICRO)
        claimed = self.payee.owed_micro + more * MICRO
        amount = amount_due(self.payer, claimed, most)
        if amount > self.payer.signed:
            self.payer = note_signed(self.payer, voucher(amount))
        received = max(self.payer.received_micro, min(claimed, most))
        self.payer = replace(self.payer, received_micro=received)
        self.why = stop_reason(self.payer, claimed, most, WINDOW, waiting=True, again=False)
        if arrives and self.payer.voucher is not None and self.payer.signed > self.payee.paid:
            self.payee = self.payee_disk = take_voucher(self.payee, self.payer.voucher, recover)

    def payer_dies(self) -> None:
        """The client begins anew, from its disk."""
        self.paying = _Paying(PeerId("node"), self.payer, WINDOW)
        self.payer = replace(self.payer, under_way=WINDOW)
        self.ring = RingWork()
        self.work = HopWork(self.ring)


@given(EVENTS, st.sampled_from([10_000, 300]))
@settings(max_examples=150, deadline=None)
def test_whoever_dies_or_lies_whenever_nobody_loses_more_than_a_window(
    events: list[tuple[str, int]], budget: int
) -> None:
    theirs = payee(window=WINDOW, least=1)
    both = Both(payer(budget=budget), theirs)
    died = payer_died = 0
    lied = lost = False
    for event, number in events:
        if event in ("serve", "lose the result"):
            lost |= event != "serve"
            try:
                both.serve(number, comes=event == "serve")
            except PaymentRequired:
                both.pay(arrives=True)
        elif event == "payer dies":
            both.payer_dies()
            died, payer_died = died + 1, payer_died + 1
        elif event == "payee dies":
            both.payee, died = both.payee_disk, died + 1
        elif event == "overcharge":
            both.pay(arrives=True, more=number)
            lied = True
        else:
            both.pay(arrives=event == "pay")
        signed, served = both.payer.signed, both.served
        assert signed <= both.payer.ceiling
        if not lied:
            assert signed <= served  # a payer pays an honest payee for nothing that it was not given
            assert lost or both.why != "overcharged"  # and calls it no liar
        # Whatever a payee says, it has a window more than what it served each time that the payer dies.
        assert signed <= served + WINDOW * payer_died
        assert signed <= both.came + WINDOW * (1 + 2 * payer_died)
        assert both.payee.paid <= signed  # nothing is believed that was not kept before
        assert served - both.payee.paid <= WINDOW * (1 + died)  # a payee loses a window each time one dies
