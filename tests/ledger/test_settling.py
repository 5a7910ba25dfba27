"""What is kept and what the chain says, together: whose coins, of which chain, what was under way."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from shoal.errors import ChainError, NotAllowed, UsageError
from shoal.ledger import settling
from shoal.ledger.chain.client import ChainClient, EscrowState
from shoal.ledger.chain.deployment import Deployment
from shoal.ledger.contracts.artefacts import NAMES
from shoal.ledger.settling import PaymentBooks
from shoal.ledger.vouchers.keys import ChainKey
from shoal.ledger.vouchers.payee import PayeeAccount
from shoal.ledger.vouchers.payer import PayerAccount
from shoal.ledger.vouchers.typed_data import ChainAddress, show_address
from shoal.ledger.vouchers.voucher import PaymentTerms, sign_voucher
from shoal.types import PeerId

OLD, NEW, PAYEE = (ChainKey.from_secret(bytes([n]) * 32) for n in (0x41, 0x42, 0x43))
DELAY_S = 86_400
NODE = PeerId("node")


def deployment(contract: int = 1) -> Deployment:
    addresses = {name: ChainAddress(bytes([contract + n]) * 20) for n, name in enumerate(NAMES)}
    return Deployment("http://127.0.0.1:9", 31337, addresses)


@dataclass
class Escrow:
    """The contract's rules in memory, for who owns what; the contract itself is tested on a chain."""

    deployment: Deployment = field(default_factory=deployment)
    amounts: dict[bytes, list[int]] = field(default_factory=dict)
    closes: dict[bytes, int] = field(default_factory=dict)
    now: int = 1000
    fails: BaseException | None = None
    happens: bool = True
    """Whether a deposit that fails comes into a block all the same."""

    def check(self) -> None:
        pass

    def escrow_state(self, channel_id: bytes) -> EscrowState:
        deposit, redeemed = self.amounts.get(channel_id, [0, 0])
        return EscrowState(deposit, redeemed, self.closes.get(channel_id))

    def deposit(self, key: ChainKey, terms: PaymentTerms, amount: int) -> None:
        if not self.fails or self.happens:
            self.amounts.setdefault(terms.channel_id(self.deployment.escrow), [0, 0])[0] += amount
        if self.fails:
            raise self.fails

    def redeem(self, key: ChainKey, terms: PaymentTerms, voucher: Any) -> None:
        self.amounts[terms.channel_id(self.deployment.escrow)][1] = voucher.amount

    def request_close(self, key: ChainKey, terms: PaymentTerms) -> None:
        assert key.address in (terms.payer, terms.payer_signer)
        self.closes[terms.channel_id(self.deployment.escrow)] = self.now + terms.delay_s

    def take_back(self, key: ChainKey, terms: PaymentTerms) -> None:
        channel_id = terms.channel_id(self.deployment.escrow)
        if self.now < self.closes[channel_id]:
            raise ChainError("the contract refuses: not yet", reason="not yet")
        self.amounts[channel_id][0] = self.amounts[channel_id][1]
        del self.closes[channel_id]


@pytest.fixture
def books(tmp_path: Path) -> PaymentBooks:
    return PaymentBooks.below(tmp_path)


def fund(escrow: Escrow, books: PaymentBooks, key: ChainKey = OLD, amount: int = 100) -> PayerAccount:
    return settling.fund(cast(ChainClient, escrow), books, key, PAYEE.address, NODE, amount)


def withdraw(escrow: Escrow, books: PaymentBooks, channel_id: bytes, key: ChainKey = OLD) -> str:
    return settling.withdraw(cast(ChainClient, escrow), books, key, channel_id)


def test_a_new_wallet_pays_into_a_channel_of_its_own(books: PaymentBooks) -> None:
    escrow = Escrow()
    old, new = fund(escrow, books, OLD), fund(escrow, books, NEW)
    assert old.channel_id != new.channel_id
    assert (new.terms.payer, new.terms.payer_signer) == (NEW.address, NEW.address)
    assert fund(escrow, books, OLD).channel_id == old.channel_id
    assert fund(escrow, books, NEW).deposit == 200


def test_only_the_wallet_that_owns_a_channel_takes_out_of_it_and_it_is_named(books: PaymentBooks) -> None:
    escrow = Escrow()
    account = fund(escrow, books, OLD)
    with pytest.raises(NotAllowed, match=show_address(OLD.address)) as told:
        withdraw(escrow, books, account.channel_id, NEW)
    assert show_address(NEW.address) in told.value.message
    assert not escrow.closes
    assert withdraw(escrow, books, account.channel_id, OLD) == "close requested"


def paid_account(domain: Any) -> PayeeAccount:
    terms = PaymentTerms(
        payer=OLD.address, payer_signer=OLD.address, payee=PAYEE.address, payee_signer=PAYEE.address
    )
    channel_id = terms.channel_id(domain)
    voucher = sign_voucher(OLD, domain, channel_id, 60)
    return PayeeAccount(
        terms=terms, domain=domain, channel_id=channel_id, deposit=100, window=9, voucher=voucher
    )


def test_only_the_wallet_that_is_paid_redeems(books: PaymentBooks) -> None:
    escrow = Escrow()
    account = paid_account(escrow.deployment.escrow)
    books.paid.add(account)
    escrow.amounts[account.channel_id] = [100, 0]
    with pytest.raises(NotAllowed, match=show_address(PAYEE.address)):
        withdraw(escrow, books, account.channel_id, NEW)
    assert withdraw(escrow, books, account.channel_id, PAYEE) == "redeemed"
    assert books.paid.read(account.channel_id).redeemed == 60


def test_what_was_paid_out_is_no_failure_where_the_account_was_dropped_meanwhile(books: PaymentBooks) -> None:
    class Dropping(Escrow):
        def redeem(self, key: ChainKey, terms: PaymentTerms, voucher: Any) -> None:
            super().redeem(key, terms, voucher)
            books.paid.remove(account.channel_id)

    escrow = Dropping()
    account = paid_account(escrow.deployment.escrow)
    books.paid.add(account)
    escrow.amounts[account.channel_id] = [100, 0]
    after = settling.redeem(cast(ChainClient, escrow), books, PAYEE, account.channel_id)
    assert (after.redeemed, after.unredeemed) == (60, 0)
    assert account.channel_id not in books.paid


def test_what_the_contract_says_is_too_early_is_waited_for(books: PaymentBooks) -> None:
    escrow = Escrow()
    channel_id = fund(escrow, books).channel_id
    assert withdraw(escrow, books, channel_id) == "close requested"
    assert books.paying.read(channel_id).closes_at == escrow.now + DELAY_S
    assert withdraw(escrow, books, channel_id) == "waiting"
    escrow.now += DELAY_S
    assert withdraw(escrow, books, channel_id) == "taken back"
    kept = books.paying.read(channel_id)
    assert (kept.deposit, kept.closes_at) == (0, None)
    with pytest.raises(UsageError, match="nothing is left"):
        withdraw(escrow, books, channel_id)


def test_after_chain_toml_was_changed_a_channel_is_refused_with_where_it_is(books: PaymentBooks) -> None:
    before, after = Escrow(), Escrow(deployment(contract=7))
    paying = fund(before, books)
    paid = paid_account(before.deployment.escrow)
    books.paid.add(paid)
    client = cast(ChainClient, after)
    tries = [
        lambda: withdraw(after, books, paying.channel_id),
        lambda: withdraw(after, books, paid.channel_id, PAYEE),
        lambda: settling.refresh_payer(client, books, paying.channel_id),
        lambda: settling.refresh_payee(client, books, paid.channel_id),
    ]
    for act in tries:
        with pytest.raises(UsageError, match="on chain 31337") as told:
            act()
        assert show_address(before.deployment.escrow.contract) in told.value.message
    assert books.paying.read(paying.channel_id).deposit == 100
    assert books.paid.read(paid.channel_id) == paid
    assert fund(after, books).channel_id != paying.channel_id


def test_a_damaged_file_of_another_channel_stops_no_payment(books: PaymentBooks, tmp_path: Path) -> None:
    escrow = Escrow()
    first = fund(escrow, books)
    path = tmp_path / "paying" / f"{first.channel_id.hex()}.account"
    path.write_bytes(b"x")
    assert fund(escrow, books).channel_id != first.channel_id


# --- A `fund` that is interrupted.


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("fails", [Killed(), ChainError("away", reason="dropped")])
def test_what_was_sent_before_the_end_may_be_spent_once_the_chain_has_it(
    books: PaymentBooks, fails: BaseException
) -> None:
    escrow = Escrow()
    channel_id = fund(escrow, books).channel_id
    escrow.fails = fails
    with pytest.raises(type(fails)):
        fund(escrow, books, amount=50)
    kept = books.paying.read(channel_id)
    assert (kept.deposit, kept.on_the_way, kept.ceiling) == (100, 50, 100)
    seen = settling.refresh_payer(cast(ChainClient, escrow), books, channel_id)
    assert (seen.deposit, seen.on_the_way, seen.ceiling) == (150, 0, 150)


def test_a_deposit_that_never_came_is_decided_by_the_next_one(books: PaymentBooks) -> None:
    escrow = Escrow(fails=Killed(), happens=False)
    with pytest.raises(Killed):
        fund(escrow, books, amount=50)
    (channel_id,) = books.paying.channel_ids()
    seen = settling.refresh_payer(cast(ChainClient, escrow), books, channel_id)
    assert (seen.deposit, seen.on_the_way) == (0, 50)
    escrow.fails = None
    again = fund(escrow, books, amount=70)
    assert (again.channel_id, again.deposit, again.on_the_way, again.ceiling) == (channel_id, 70, 0, 70)


@pytest.mark.parametrize("reason", ["reverted", "poor", "down", "refused"])
def test_a_deposit_that_certainly_did_not_happen_is_not_on_its_way(books: PaymentBooks, reason: str) -> None:
    escrow = Escrow(fails=ChainError("no", reason=reason), happens=False)
    with pytest.raises(ChainError):
        fund(escrow, books)
    (channel_id,) = books.paying.channel_ids()
    kept = books.paying.read(channel_id)
    assert (kept.on_the_way, kept.budget) == (0, 0)
