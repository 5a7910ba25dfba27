"""The side that pays: it counts for itself what it was given, and never signs for more. Pure."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from shoal.errors import PaymentStopped
from shoal.ledger.vouchers.payee import MICRO, Amount, Recover
from shoal.ledger.vouchers.typed_data import SigningDomain, WordBytes
from shoal.ledger.vouchers.voucher import PaymentTerms, Voucher


class PayerAccount(Struct, frozen=True, kw_only=True, tag="payer"):
    """One payment channel as its payer knows it. Amounts are in the token's smallest unit."""

    terms: PaymentTerms
    domain: SigningDomain
    channel_id: WordBytes
    deposit: Amount
    """What is in escrow."""
    budget: Amount
    """What may be signed for at most."""
    price: Amount
    """What was agreed: for a million tokens of one block."""
    received_micro: Amount = 0
    """What was received since the channel was opened, in millionths."""
    voucher: Voucher | None = None
    """The last that was signed."""
    on_the_way: Amount = 0
    """What was sent into escrow and was not seen there yet. The budget counts it already."""
    under_way: Amount = 0
    """What the payee may be owed of sessions that were open when this machine stopped: its window; else 0."""

    @property
    def received(self) -> int:
        """What was received, in whole units."""
        return self.received_micro // MICRO

    @property
    def signed(self) -> int:
        """What was signed for."""
        return self.voucher.amount if self.voucher else 0

    @property
    def ceiling(self) -> int:
        """What will be signed for at most."""
        return min(self.deposit, self.budget)


def note_sending(account: PayerAccount, amount: int) -> PayerAccount:
    """``amount`` is about to be sent into escrow: to be on disk before. Below 0: it was not sent after all.

    That the budget grows at once gives nothing away: no more is signed for than is in escrow.
    """
    return msgspec.structs.replace(
        account,
        budget=max(0, account.budget + amount),
        on_the_way=max(0, account.on_the_way + amount),
    )


def note_deposit(account: PayerAccount, deposit: int) -> PayerAccount:
    """The chain says what is in escrow. What is there more than before is no longer on the way."""
    arrived = max(0, deposit - account.deposit)
    return msgspec.structs.replace(account, deposit=deposit, on_the_way=max(0, account.on_the_way - arrived))


def check_price(account: PayerAccount, price: int) -> None:
    """Refuse what a peer asks in the middle of a session, where it is more than was agreed.

    Raises:
        PaymentStopped: it is; ``reason`` is ``price raised``.
    """
    if price > account.price:
        message = f"this peer now asks {price} for a million tokens of a block; {account.price} were agreed"
        raise PaymentStopped(message, reason="price raised", check="use another peer, or agree to its price")


def receive(account: PayerAccount, tokens: int, blocks: int) -> PayerAccount:
    """The result of ``tokens`` tokens over ``blocks`` blocks has come."""
    micro = account.received_micro + tokens * blocks * account.price
    return msgspec.structs.replace(account, received_micro=micro)


def amount_due(account: PayerAccount, every: int) -> int | None:
    """What to sign for now, where a voucher is sent for each ``every`` units; ``None``: it is not time yet.

    Only what was received: a payee that stops after it was paid has taken nothing.

    Raises:
        PaymentStopped: the budget is spent, or what is in escrow; ``reason`` is ``budget spent``.
    """
    due = account.received - account.signed
    if due <= 0 or due < every:
        return None
    if account.received > account.ceiling:
        if account.signed < account.ceiling:
            return account.ceiling
        message = f"all of the {account.ceiling} that may be paid over this payment channel are spent"
        raise PaymentStopped(
            message,
            reason="budget spent",
            check="raise the budget, or add to the payment channel",
            next_command="shoal wallet fund",
        )
    return account.received


def check_claim(account: PayerAccount, owed: int, window: int) -> None:
    """Refuse to go on with a payee that says it is owed more than it gave.

    What is under way counts for it: ``window`` is what it serves before it is paid.

    Raises:
        PaymentStopped: ``reason`` is ``overcharged``.
    """
    if owed > account.received + window:
        message = f"this peer says that it is owed {owed}; what came from it was worth {account.received}"
        raise PaymentStopped(message, reason="overcharged", check="use another peer")


def note_signed(account: PayerAccount, voucher: Voucher) -> PayerAccount:
    """A voucher was signed: to be on disk before it is sent.

    Raises:
        ValueError: it is worth less than the last one, which is a defect of ours.
    """
    if voucher.amount < account.signed:
        raise ValueError("a voucher for less than the last one")
    return msgspec.structs.replace(account, voucher=voucher)


def catch_up(account: PayerAccount, shown: Voucher, recover: Recover) -> PayerAccount:
    """A payee shows the newest voucher that it has: where ours was lost, that one is ours again.

    Raises:
        PaymentStopped: we have not signed it, or not of this channel; ``reason`` is ``forged``.
    """
    domain = account.domain
    place = (shown.chain_id, shown.contract, shown.channel_id)
    ours = place == (domain.chain_id, domain.contract, account.channel_id) and shown.amount <= account.ceiling
    if not ours or recover(shown.digest, shown.signature) != account.terms.payer_signer:
        raise PaymentStopped("this peer shows a voucher that was not signed here", reason="forged")
    if shown.amount <= account.signed:
        return account
    micro = max(account.received_micro, shown.amount * MICRO)
    return msgspec.structs.replace(account, voucher=shown, received_micro=micro)
