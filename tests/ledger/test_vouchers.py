"""What is signed and what is believed: as x402 has it, and by name refused where it is not so."""

from __future__ import annotations

import dataclasses
import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import PaymentRequired, PaymentStopped, UsageError, VoucherRefused
from shoal.ledger.vouchers.keys import HALF_ORDER, ChainKey, recover
from shoal.ledger.vouchers.payee import (
    MICRO,
    PayeeAccount,
    charge,
    check_credit,
    redeem_due,
    take_voucher,
)
from shoal.ledger.vouchers.payer import (
    PayerAccount,
    amount_due,
    catch_up,
    check_claim,
    check_price,
    note_signed,
    receive,
)
from shoal.ledger.vouchers.typed_data import MAX_UINT128, parse_address, show_address
from shoal.ledger.vouchers.voucher import (
    PaymentTerms,
    Voucher,
    escrow_domain,
    sign_voucher,
    voucher_digest,
)

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
    account = PayerAccount(
        terms=TERMS, domain=DOMAIN, channel_id=CHANNEL, deposit=10_000, budget=10_000, price=2 * MICRO
    )
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


def test_a_payee_redeems_when_it_is_worth_it_and_at_once_when_the_payer_closes() -> None:
    account = take_voucher(payee(), voucher(100), recover)
    assert not redeem_due(account, cost=6)
    assert redeem_due(account, cost=5)
    assert redeem_due(replace(account, closes_at=1.0), cost=99)
    assert not redeem_due(replace(account, closes_at=1.0), cost=100)
    assert not redeem_due(replace(account, redeemed=100), cost=0)


# --- What a payer signs for.


def test_a_payer_signs_for_what_it_received_and_no_more() -> None:
    account = receive(payer(), tokens=10, blocks=4)
    assert amount_due(account, every=81) is None
    assert amount_due(account, every=80) == 80
    account = note_signed(account, voucher(80))
    assert amount_due(account, every=1) is None
    with pytest.raises(ValueError, match="less"):
        note_signed(account, voucher(79))


def test_a_payer_stops_at_its_budget_after_spending_all_of_it() -> None:
    account = receive(payer(budget=100), tokens=60, blocks=1)
    assert amount_due(account, every=1) == 100
    account = note_signed(account, voucher(100))
    with pytest.raises(PaymentStopped) as stopped:
        amount_due(account, every=1)
    assert stopped.value.reason == "budget spent"


def test_a_price_that_is_raised_in_the_middle_is_not_paid() -> None:
    check_price(payer(), 2 * MICRO)
    check_price(payer(), MICRO)
    with pytest.raises(PaymentStopped) as stopped:
        check_price(payer(), 2 * MICRO + 1)
    assert stopped.value.reason == "price raised"


def test_a_payee_that_claims_more_than_it_gave_is_not_paid() -> None:
    account = receive(payer(), tokens=10, blocks=1)
    check_claim(account, owed=20 + 500, window=500)
    with pytest.raises(PaymentStopped) as stopped:
        check_claim(account, owed=20 + 501, window=500)
    assert stopped.value.reason == "overcharged"


def test_a_payer_that_lost_its_file_takes_the_newest_voucher_from_the_payee() -> None:
    account = catch_up(payer(), voucher(300), recover)
    assert (account.signed, account.received) == (300, 300)
    assert amount_due(receive(account, 10, 1), every=1) == 320
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


def test_a_payee_that_stops_after_it_was_paid_has_taken_nothing() -> None:
    account = receive(payer(), tokens=50, blocks=2)
    account = note_signed(account, voucher(amount_due(account, every=1) or 0))
    assert account.signed == account.received == 200


# --- Both together, with whatever may happen between them.

EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("serve"), st.integers(1, 40)),
        st.tuples(st.sampled_from(["pay", "lose the voucher", "payer dies", "payee dies"]), st.just(0)),
    ),
    max_size=60,
)


@dataclasses.dataclass
class Both:
    """What each side has in memory and on its disk. What dies goes on from its disk."""

    payer: PayerAccount
    payee: PayeeAccount
    payer_disk: PayerAccount
    payee_disk: PayeeAccount
    served_micro: int = 0

    def serve(self, tokens: int) -> None:
        micro = tokens * self.payer.price
        check_credit(self.payee, micro, now=0)
        self.payee = charge(self.payee, micro)
        self.payer = receive(self.payer, tokens, 1)
        self.served_micro += micro

    def pay(self, arrives: bool) -> None:
        due = amount_due(self.payer, every=1)
        if due is not None:
            self.payer = self.payer_disk = note_signed(self.payer, voucher(due))
        if arrives and self.payer.voucher is not None and self.payer.signed > self.payee.paid:
            self.payee = self.payee_disk = take_voucher(self.payee, self.payer.voucher, recover)


@given(EVENTS)
@settings(max_examples=150, deadline=None)
def test_whoever_dies_whenever_nobody_loses_more_than_a_window(events: list[tuple[str, int]]) -> None:
    ours, theirs = payer(price=MICRO), payee(window=100, least=1)
    both = Both(ours, theirs, ours, theirs)
    died = 0
    for event, tokens in events:
        if event == "serve":
            try:
                both.serve(tokens)
            except PaymentRequired:
                both.pay(arrives=True)
        elif event == "payer dies":
            both.payer, died = both.payer_disk, died + 1
        elif event == "payee dies":
            both.payee, died = both.payee_disk, died + 1
        else:
            both.pay(arrives=event == "pay")
        served = both.served_micro // MICRO
        assert both.payer_disk.signed <= served  # a payer pays for nothing that it was not given
        assert both.payee.paid <= both.payer_disk.signed  # nothing is believed that was not kept before
        assert served - both.payee.paid <= 100 * (1 + died)  # a payee loses a window each time that one dies
