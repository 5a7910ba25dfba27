"""The side that is paid: when it serves, when it waits for a voucher, and which voucher it takes.

Pure. Work is counted in millionths of the token's smallest unit, so that no rounding divides the two sides;
what a million tokens of one block cost is then what one token of it costs in these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta, Struct

from shoal.errors import PaymentRequired, VoucherRefused
from shoal.ledger.vouchers.typed_data import ChainAddress, SigningDomain, WordBytes
from shoal.ledger.vouchers.voucher import MAX_AMOUNT, PaymentTerms, Voucher

MICRO = 10**6
CLOSING_MARGIN = 0.5
"""Of the delay: so much is left to redeem in when no more is served. It covers clocks that are apart."""

Amount = Annotated[int, Meta(ge=0)]
Recover = Callable[[bytes, bytes], ChainAddress | None]


class Escrowed(Protocol):
    """What the chain says of a payment channel."""

    @property
    def deposit(self) -> int: ...
    @property
    def redeemed(self) -> int: ...
    @property
    def closes_at(self) -> float | None: ...


class FailedRedemption(Struct, frozen=True, kw_only=True):
    """Tries to have a voucher paid out, one after the other, that came to nothing."""

    times: Annotated[int, Meta(ge=1)]
    last_s: float
    """When the last one ended, in seconds since the epoch."""
    why: Annotated[str, Meta(max_length=1000)]


class PayeeAccount(Struct, frozen=True, kw_only=True, tag="payee"):
    """One payment channel as its payee knows it."""

    terms: PaymentTerms
    domain: SigningDomain
    channel_id: WordBytes
    deposit: Amount
    """What is in escrow, as the chain last said."""
    window: Amount
    """What is served before it is paid, at most."""
    least: Amount = 1
    """A voucher that adds less, and does not pay all, is dust: it costs more to check than it brings."""
    owed_micro: Amount = 0
    """What was served since the channel was opened, in millionths."""
    voucher: Voucher | None = None
    """The newest: worth all before it."""
    redeemed: Amount = 0
    """What the chain has paid out."""
    closes_at: float | None = None
    """When the payer may take back what is left, by the chain's clock; ``None`` while it has not asked."""
    told: Amount = 0
    """What a payer that counts by what it is told was told that it owes (:mod:`shoal.ledger.x402.taking`)."""
    redeem_failed: FailedRedemption | None = None
    """Tries to redeem by itself, since it last went well (:mod:`shoal.ledger.vouchers.redeeming`)."""

    @property
    def owed(self) -> int:
        """What was served, in whole units."""
        return self.owed_micro // MICRO

    @property
    def paid(self) -> int:
        """What the newest voucher is worth."""
        return self.voucher.amount if self.voucher else 0

    @property
    def unredeemed(self) -> int:
        """What the chain would still pay out for it."""
        return max(0, self.paid - self.redeemed)


def note_escrow(account: PayeeAccount, state: Escrowed) -> PayeeAccount:
    """The chain says what is in escrow, what it has paid out, and whether the payer is closing."""
    return msgspec.structs.replace(
        account, deposit=state.deposit, redeemed=state.redeemed, closes_at=state.closes_at
    )


def check_credit(account: PayeeAccount, micro: int, now: float) -> None:
    """Refuse work for ``micro`` more that would not be paid for: the session waits, and goes on when it is.

    Raises:
        PaymentRequired: a voucher is due, or more in escrow, or the channel is closing.
    """
    if account.closes_at is not None:
        margin_s = CLOSING_MARGIN * account.terms.delay_s
        if now >= account.closes_at - margin_s:
            message = "the payer is closing this payment channel"
            raise PaymentRequired(message, reason="closing", check="open another one")
    after = -(-(account.owed_micro + micro) // MICRO)
    if after > account.deposit:
        raise PaymentRequired(
            f"{account.owed} of the {account.deposit} in escrow are owed: there is not enough for more",
            reason="over deposit",
            check="add to the payment channel",
            next_command="shoal wallet fund",
        )
    if after - account.paid > account.window:
        message = (
            f"{account.owed} are owed and {account.paid} paid: this node gives credit for {account.window}"
        )
        raise PaymentRequired(message, reason="unpaid", check="send a voucher for what is owed")


def charge(account: PayeeAccount, micro: int) -> PayeeAccount:
    """Work for ``micro`` was done."""
    return msgspec.structs.replace(account, owed_micro=account.owed_micro + micro)


def take_voucher(account: PayeeAccount, voucher: Voucher, recover: Recover) -> PayeeAccount:
    """Believe a voucher, or refuse it by name; what is dear to check is checked last.

    Returns:
        The account with it, to be on disk before anything is done for it.

    Raises:
        VoucherRefused: says why in its ``reason``. The account stands as it was.
    """
    _check_place(account, voucher)
    _check_amount(account, voucher.amount)
    if recover(voucher.digest, voucher.signature) != account.terms.payer_signer:
        raise VoucherRefused("the payer of this payment channel has not signed this", reason="signature")
    return msgspec.structs.replace(account, voucher=voucher)


def _check_place(account: PayeeAccount, voucher: Voucher) -> None:
    ours = account.domain
    if voucher.chain_id != ours.chain_id:
        message = f"this voucher holds on chain {voucher.chain_id}, not on {ours.chain_id}"
        raise VoucherRefused(message, reason="other chain")
    if voucher.contract != ours.contract:
        raise VoucherRefused("this voucher holds at another contract", reason="other contract")
    if voucher.channel_id != account.channel_id:
        raise VoucherRefused("this voucher is of another payment channel", reason="other channel")


def _check_amount(account: PayeeAccount, amount: int) -> None:
    if amount > MAX_AMOUNT:
        raise VoucherRefused("this voucher's amount has more than 128 bits", reason="overflow")
    if amount > account.deposit:
        message = f"this voucher is for {amount}, and {account.deposit} are in escrow"
        raise VoucherRefused(message, reason="over deposit", check="add to the payment channel")
    if account.voucher is not None and amount == account.paid:
        raise VoucherRefused(f"a voucher for {amount} is here already", reason="replayed")
    if amount <= account.paid:
        message = f"this voucher is for {amount}, and a newer one for {account.paid} is here"
        raise VoucherRefused(message, reason="stale")
    if amount - account.paid < account.least and amount < account.owed:
        message = (
            f"this voucher adds {amount - account.paid}; less than {account.least} is not worth checking"
        )
        raise VoucherRefused(message, reason="dust", check="pay all that is owed, or wait until more is due")
