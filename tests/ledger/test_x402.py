"""Payments as x402's clients make them: read as they write them, and never told less than is owed."""

from __future__ import annotations

import base64
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from x402.mechanisms.evm.batch_settlement import constants, types
from x402.schemas import PaymentRequired as TheirRequired
from x402.schemas import SettleResponse

from shoal.config import load
from shoal.errors import UsageError
from shoal.gateway.payment.opening import offer_of, paid_door
from shoal.gateway.payment.terms import read_terms, smallest_units
from shoal.ledger.vouchers.keys import recover
from shoal.ledger.vouchers.payee import PayeeAccount
from shoal.ledger.vouchers.typed_data import show_address
from shoal.ledger.vouchers.voucher import sign_voucher
from shoal.ledger.x402.messages import MAX_HEADER, read_payment, terms_of
from shoal.ledger.x402.offer import COLLECTOR, SETTLEMENT, response
from shoal.ledger.x402.refusals import (
    NOTHING_LEFT,
    PaymentNotTaken,
)
from shoal.ledger.x402.settlement import TokenFacts
from shoal.ledger.x402.taking import charge_after, charge_before, check_refund, tell
from tests.ledger.x402 import contracts
from tests.ledger.x402.payments import (
    OFFER,
    OURS,
    PAYEE,
    PAYER,
    TERMS,
    TOKEN,
    account,
    header,
    paid,
    payment,
)


def test_the_addresses_and_the_names_of_channels_are_those_of_x402() -> None:
    assert show_address(SETTLEMENT) == constants.BATCH_SETTLEMENT_ADDRESS
    assert show_address(COLLECTOR) == constants.ERC3009_DEPOSIT_COLLECTOR_ADDRESS
    read = read_payment(header(payment()))
    assert terms_of(read) == TERMS
    assert read.payload.voucher.channel_id == "0x" + TERMS.channel_id(OFFER.domain).hex()
    OFFER.check_accepted(read.accepted)
    OFFER.check_terms(terms_of(read))


def test_what_we_say_is_read_by_x402s_own_types() -> None:
    kept = tell(paid(account(), OFFER.ceiling), 17)
    required = TheirRequired.model_validate(OFFER.required("https://example.org/v1", "why", kept))
    extra = types.PaymentRequirementsExtra.from_dict(required.accepts[0].extra)
    assert extra.channel_state is not None and extra.voucher_state is not None
    assert extra.channel_state.charged_cumulative_amount == "17"
    assert extra.voucher_state.signed_max_claimable == str(OFFER.ceiling)
    told = SettleResponse.model_validate(response(OFFER, kept, 17))
    assert (told.success, told.extra and told.extra["chargedAmount"]) == (True, "17")


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "?",
        "e30=",
        "A" * (MAX_HEADER + 1),
        base64.b64encode(b"[" * 10_000).decode(),
        base64.b64encode(b"\xff\xfe").decode(),
        header(payment(x402Version=1)),
        header(payment(accepted=OFFER.requirements() | {"scheme": "exact"})),
        header(payment(accepted=OFFER.requirements() | {"amount": "-1"})),
        header(payment(payload={"type": "claim"})),
        header(payment(payload=payment()["payload"] | {"type": "deposit"})),
        header(payment(payload=payment()["payload"] | {"voucher": {}})),
    ],
)
def test_what_is_no_payment_is_refused_by_its_word(sent: str) -> None:
    with pytest.raises(PaymentNotTaken, match="not understood"):
        read_payment(sent)


def test_an_address_with_a_slip_of_the_pen_is_refused() -> None:
    wrong = payment()
    wrong["payload"]["channelConfig"]["payer"] = show_address(PAYER.address).swapcase().replace("0X", "0x")
    with pytest.raises(PaymentNotTaken, match="capitals"):
        terms_of(read_payment(header(wrong)))


@pytest.mark.parametrize(
    "change", [{"payee": TOKEN}, {"payee_signer": PAYEE}, {"token": PAYEE}, {"delay_s": 900}]
)
def test_a_payment_channel_on_other_terms_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(PaymentNotTaken, match="other terms"):
        OFFER.check_terms(msgspec.structs.replace(TERMS, **change))


def test_a_voucher_pays_once_and_again_only_where_nothing_was_told_since() -> None:
    first = paid(account(), OFFER.ceiling)
    assert paid(first, OFFER.ceiling) == first
    told = tell(first, 5)
    for amount in (OFFER.ceiling, OFFER.ceiling + 4, OFFER.ceiling + 6):
        with pytest.raises(PaymentNotTaken) as refused:
            paid(told, amount)
        assert refused.value.account == told
    assert paid(told, OFFER.ceiling + 5).paid == OFFER.ceiling + 5


def test_who_has_not_signed_is_told_nothing_of_the_account() -> None:
    told = tell(paid(account(), OFFER.ceiling), 5)
    for amount in (OFFER.ceiling, OFFER.ceiling + 5):
        with pytest.raises(PaymentNotTaken) as refused:
            paid(told, amount, key=OURS)
        assert (refused.value.reason, refused.value.account) == (
            "invalid_batch_settlement_evm_voucher_signature",
            None,
        )


def test_more_than_is_in_escrow_is_refused_and_a_closing_channel_in_time() -> None:
    with pytest.raises(PaymentNotTaken) as refused:
        paid(account(deposit=OFFER.ceiling - 1), OFFER.ceiling)
    assert refused.value.reason == "invalid_batch_settlement_evm_cumulative_exceeds_balance"
    paid(account(closes_at=43_201.0), OFFER.ceiling)
    with pytest.raises(PaymentNotTaken) as refused:
        paid(account(closes_at=43_199.0), OFFER.ceiling)
    assert refused.value.reason == "shoal_channel_is_closing"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, OFFER.most_tokens), st.booleans()), max_size=30))
def test_the_newest_voucher_has_room_for_all_that_was_served_and_is_under_way(
    asked: list[tuple[bool, int, bool]],
) -> None:
    now, streams, used = account(), list[int](), 0
    for streamed, tokens, ends in asked:
        now = msgspec.structs.replace(now, voucher=None)  # only the amounts are looked at here
        ceiling = now.told + OFFER.ceiling
        used += tokens
        if streamed:
            charged = charge_before(now, OFFER, len(streams))
            streams.append(tokens)
        else:
            now = served(now, tokens)
            charged = charge_after(now, OFFER, len(streams))
        assert 1 <= charged <= OFFER.ceiling  # or the client would refuse it, or a voucher pay twice
        now = tell(now, charged)
        if ends and streams:
            now = served(now, streams.pop(0))
        still = sum(streams) * OFFER.price
        assert now.owed_micro + still <= now.told * 10**6 <= ceiling * 10**6
    for tokens in streams:
        now = served(now, tokens)
    assert now.owed_micro == used * OFFER.price <= now.told * 10**6


def served(now: PayeeAccount, tokens: int) -> PayeeAccount:
    return msgspec.structs.replace(now, owed_micro=now.owed_micro + tokens * OFFER.price)


WRITTEN = {
    "url": "http://127.0.0.1:9",
    "chain_id": 84532,
    "token": show_address(TOKEN),
    "payee": show_address(PAYEE),
    "price": "0.5",
    "password_file": "word",
}


def written(folder: Path, **changes: Any) -> Path:
    values = {name: value for name, value in (WRITTEN | changes).items() if value is not None}
    path = folder / "payment.toml"
    path.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items()))
    return path


def test_a_file_of_terms_becomes_an_offer(tmp_path: Path) -> None:
    terms = read_terms(written(tmp_path))
    assert terms.password_file == tmp_path / "word"
    offer = offer_of(terms, TokenFacts("USDC", "2", 6), OURS)
    assert (offer.price, offer.ceiling, offer.least_deposit) == (500_000, 2048, 20_480)
    assert smallest_units(Decimal("0.0000001"), 6) == 1
    assert (
        smallest_units(Decimal("1234567890123456789012345678901.25"), 2) == 123456789012345678901234567890125
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"chain_id": 1}, "no test chain"),
        ({"price": None}, "needs price"),
        ({"password_file": None}, "needs password_file"),
        ({"price": 0.5}, "quotation marks"),
        ({"price": "-1"}, "above 0"),
        ({"price": "nan"}, "above 0"),
        ({"price": "1e400"}, "above 0"),
        ({"least_deposit": "x"}, "above 0"),
        ({"most_tokens": 0}, "from 1 to"),
        ({"delay_s": 60}, "from 900 to"),
        ({"token": "0x12"}, "no address"),
        ({"url": "ftp://x"}, "no address of a chain"),
        ({"tokens": 1}, "unknown name 'tokens'"),
    ],
)
def test_terms_that_cannot_be_are_told(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        read_terms(written(tmp_path, **change))


@pytest.mark.parametrize("change", [{"price": "1e35"}, {"least_deposit": "1e35"}])
def test_an_offer_for_which_no_voucher_has_room_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="no voucher has room"):
        offer_of(read_terms(written(tmp_path, **change)), TokenFacts("USDC", "2", 6), OURS)


def test_a_file_that_is_too_long_is_refused_and_not_read_in_part(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text() + "\n" + "#" * (1 << 20))
    with pytest.raises(UsageError, match="more than 1048576 bytes"):
        read_terms(path)
    with pytest.raises(UsageError, match="there is no"):
        read_terms(tmp_path / "missing.toml")


def test_gateways_that_share_a_database_are_not_paid(tmp_path: Path) -> None:
    given = {"payment": str(written(tmp_path)), "database": "postgresql://db/shoal"}
    settings = load(given, {"SHOAL_HOME": str(tmp_path)})
    with pytest.raises(UsageError, match="share a database"):
        paid_door(settings)
    assert paid_door(load({}, {"SHOAL_HOME": str(tmp_path)})) is None


def test_the_contracts_of_these_tests_are_compiled_from_what_stands_beside_them() -> None:
    for name in contracts.NAMES:
        assert contracts.contract(name)["source"] == contracts.source_hash(name)


def test_what_is_worth_no_transaction_is_not_given_back() -> None:
    """A tenth of the least deposit, which is 1000 here, and no less."""
    found = account(deposit=1100, owed_micro=1000 * 10**6, told=1000)
    voucher = sign_voucher(PAYER, OFFER.domain, found.channel_id, 1000)
    assert check_refund(found, OFFER, voucher, recover) == 100
    assert check_refund(found, OFFER, voucher, recover, 10**9) == 100
    for kept, asked in ((found, 99), (found, 0), (msgspec.structs.replace(found, deposit=1099), None)):
        with pytest.raises(PaymentNotTaken) as refused:
            check_refund(kept, OFFER, voucher, recover, asked)
        assert refused.value.reason == NOTHING_LEFT
