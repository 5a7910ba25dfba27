"""When a payee has its newest voucher paid out by itself: once it is worth its gas, or in time before the
payer takes all back. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from shoal.ledger.vouchers.payee import CLOSING_MARGIN, FailedRedemption, PayeeAccount

RedeemReason = Literal["worth it", "closing"]

REDEEM_GAS = 70_000
"""Units of gas that redeeming takes at the most, where the payee's account is new to the chain."""
FIRST_WAIT_S = 60.0
LONGEST_WAIT_S = 3600.0
"""Between two tries."""
CLOSING_TRIES = 8
"""Where the payer is closing, a wait takes at most one such part of the time that is left."""
MAX_WHY = 300


def redeem_reason(
    account: PayeeAccount, cost: int, at_least: int, now: float, *, serving: bool
) -> RedeemReason | None:
    """Why to redeem now; ``None``: wait.

    Args:
        cost: what the gas of it costs, in the chain's coin as the account's amounts are.
        at_least: how many times that a voucher has to be worth, where nothing presses.
        serving: whether a session is open that adds to what is owed.
    """
    worth = account.unredeemed
    if not may_redeem(account, now):
        return None
    if worth >= cost * at_least:
        return "worth it"
    if account.closes_at is None or worth <= cost:
        return None
    # Once no more is served, the newest voucher is the last one.
    over = now >= account.closes_at - CLOSING_MARGIN * account.terms.delay_s
    return "closing" if over or not serving else None


def may_redeem(account: PayeeAccount, now: float) -> bool:
    """Whether there is anything to redeem, and the last try that failed was long enough ago."""
    failed = account.redeem_failed
    # A try that is still to come was noted by a clock that has been set back since: it holds nothing up.
    waits = failed is not None and failed.last_s <= now < next_try(account)
    # With less in escrow than the voucher says, as after a close, the contract pays nothing out for it.
    return account.unredeemed > 0 and account.paid <= account.deposit and not waits


def next_try(account: PayeeAccount) -> float:
    """Not before then is it tried again, in seconds since the epoch."""
    failed = account.redeem_failed
    if failed is None:
        return 0.0
    wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failed.times - 1, 16))
    if account.closes_at is not None:
        wait = min(wait, max(FIRST_WAIT_S, (account.closes_at - failed.last_s) / CLOSING_TRIES))
    return failed.last_s + wait


def note_failed(account: PayeeAccount, why: str, now: float) -> PayeeAccount:
    """It was tried, and came to nothing that is known of."""
    times = account.redeem_failed.times + 1 if account.redeem_failed else 1
    failed = FailedRedemption(times=times, last_s=now, why=why[:MAX_WHY])
    return msgspec.structs.replace(account, redeem_failed=failed)


def note_redeemed(account: PayeeAccount, amount: int) -> PayeeAccount:
    """The chain has paid out a voucher of that amount, in wei."""
    return msgspec.structs.replace(account, redeemed=max(account.redeemed, amount), redeem_failed=None)
