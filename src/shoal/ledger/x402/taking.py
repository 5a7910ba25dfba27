"""Which voucher pays for a request, and what its client is told that it has paid. Pure.

A client of x402 signs, for each request, for all that it was charged before and the ceiling of one request.
It hears in the head of the answer what that request was charged. In an answer that comes as a stream the
head is sent before its tokens are counted: then the whole ceiling is told, and what was too much is taken off
what the next ones are told. So it was always told at least what it owes, and the newest voucher has room for
every request that is under way. On the chain, no more is claimed than what was served.
"""

from __future__ import annotations

import msgspec

from shoal.errors import PaymentRequired, VoucherRefused
from shoal.ledger.vouchers.payee import MICRO, PayeeAccount, Recover, check_credit, take_voucher
from shoal.ledger.vouchers.voucher import PaymentTerms, Voucher
from shoal.ledger.x402.offer import GatewayOffer
from shoal.ledger.x402.refusals import (
    CLOSING,
    MISMATCH,
    NOTHING_LEFT,
    OF_VOUCHERS,
    OVER_DEPOSIT,
    SIGNATURE,
    PaymentNotTaken,
)

REFUND_PART = 10
"""Of the least deposit: less is not given back when it is asked for, as the gateway pays the gas of claiming
and of giving back. The payer can close the payment channel itself, and has it then."""


def pay_request(
    account: PayeeAccount, offer: GatewayOffer, voucher: Voucher, recover: Recover, now: float
) -> PayeeAccount:
    """Take the voucher of a request.

    The same one may come again where nothing was told since: the request before had failed.

    Args:
        now: by the chain's clock, in seconds.

    Returns:
        The account with it, to be on disk before anything is done for it.

    Raises:
        PaymentNotTaken: says why, in x402's words. The account stands as it was.
    """
    # First: whoever is told what was charged is told the newest voucher too, and might use it.
    check_signed(voucher, account.terms, recover)
    if voucher.amount != account.told + offer.ceiling:
        raise PaymentNotTaken(
            f"this voucher is for {voucher.amount}; {account.told} were charged before, and a request may"
            f" cost {offer.ceiling}",
            reason=MISMATCH,
            check="sign for all that was charged and the ceiling of one request, once for each",
            account=account,
        )
    try:
        again = account.voucher is not None and voucher.amount == account.paid
        taken = account if again else take_voucher(account, voucher, recover)
        check_credit(taken, offer.ceiling_micro, now)
    except VoucherRefused as error:
        reason = OF_VOUCHERS.get(error.reason, SIGNATURE)
        raise PaymentNotTaken(error.message, reason=reason, check=error.check) from error
    except PaymentRequired as error:
        reason = CLOSING if error.reason == "closing" else OVER_DEPOSIT
        raise PaymentNotTaken(error.message, reason=reason, check=error.check) from error
    return taken


def check_signed(voucher: Voucher, terms: PaymentTerms, recover: Recover) -> None:
    """See that a payment channel's payer has signed a voucher: before anything is looked up or told.

    Raises:
        PaymentNotTaken: it has not.
    """
    if recover(voucher.digest, voucher.signature) != terms.payer_signer:
        message = "the payer of this payment channel has not signed this"
        raise PaymentNotTaken(message, reason=SIGNATURE)


def charge_before(account: PayeeAccount, offer: GatewayOffer, under_way: int) -> int:
    """What to tell of a request whose tokens are not counted yet, beside what was told.

    At least 1, so that no voucher pays for two requests.

    Args:
        under_way: other requests for which this was told and which are not counted yet.
    """
    return max(1, offer.ceiling - max(0, _spare(account, offer, under_way)))


def charge_after(account: PayeeAccount, offer: GatewayOffer, under_way: int) -> int:
    """What to tell of a request that is counted in ``account``, beside what was told. At least 1, too."""
    return min(offer.ceiling, max(1, -_spare(account, offer, under_way)))


def _spare(account: PayeeAccount, offer: GatewayOffer, under_way: int) -> int:
    """What was told beyond what is owed, and beyond what is under way. A begun unit counts as whole."""
    return account.told - -(-account.owed_micro // MICRO) - under_way * offer.ceiling


def tell(account: PayeeAccount, charged: int) -> PayeeAccount:
    """The payer is told of so much more: to be on disk before it is."""
    return msgspec.structs.replace(account, told=account.told + charged)


def check_refund(
    account: PayeeAccount, offer: GatewayOffer, voucher: Voucher, recover: Recover, asked: int | None = None
) -> int:
    """See that who wants its money back is the payer, and knows what it was charged.

    Args:
        asked: what it wants; ``None``: all that is left.

    Returns:
        What it is given back.

    Raises:
        PaymentNotTaken: it is not, or does not; or too little is left for a transaction.
    """
    check_signed(voucher, account.terms, recover)
    if voucher.amount != account.told:
        message = f"this voucher is for {voucher.amount}, and {account.told} were charged"
        raise PaymentNotTaken(message, reason=MISMATCH, account=account)
    left = max(0, account.deposit - account.owed)
    given, least = left if asked is None else min(asked, left), max(1, offer.least_deposit // REFUND_PART)
    if given < least:
        raise PaymentNotTaken(
            f"{given} would be given back, and this gateway sends nothing for less than {least}",
            reason=NOTHING_LEFT,
            check="ask for more of what is left at once, or close the payment channel yourself",
        )
    return given


def begin_anew(account: PayeeAccount) -> PayeeAccount:
    """All that was owed is claimed, and the rest given back: what counts is what the chain says."""
    owed = account.owed
    return msgspec.structs.replace(account, voucher=None, told=owed, owed_micro=owed * MICRO)
