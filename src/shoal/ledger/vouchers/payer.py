"""The side that pays: it counts for itself what it was given, and never signs for more than a window beyond
that. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct

from shoal.errors import PaymentStopped
from shoal.ledger.vouchers.payee import MICRO, Amount, Escrowed, Recover
from shoal.ledger.vouchers.typed_data import SigningDomain, WordBytes
from shoal.ledger.vouchers.voucher import PaymentTerms, Voucher

StopReason = Literal["overcharged", "budget spent"]


class PayerAccount(Struct, frozen=True, kw_only=True, tag="payer"):
    """One payment channel as its payer knows it. Amounts are in the token's smallest unit."""

    terms: PaymentTerms
    domain: SigningDomain
    channel_id: WordBytes
    deposit: Amount
    """What is in escrow."""
    budget: Amount
    """What may be signed for at most."""
    received_micro: Amount = 0
    """What was received since the channel was opened, in millionths."""
    voucher: Voucher | None = None
    """The last that was signed."""
    on_the_way: Amount = 0
    """What was sent into escrow and was not seen there yet. The budget counts it already."""
    under_way: Amount = 0
    """What the payee may be owed of sessions that were open when this machine stopped: its window; else 0."""
    closes_at: float | None = None
    """When we may take back what is left, by the chain's clock: until then no payee serves for it."""

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


def note_deposit(account: PayerAccount, state: Escrowed) -> PayerAccount:
    """The chain says what is in escrow, and whether we are closing. What is there more than before is no
    longer on the way."""
    arrived = max(0, state.deposit - account.deposit)
    return msgspec.structs.replace(
        account,
        deposit=state.deposit,
        on_the_way=max(0, account.on_the_way - arrived),
        closes_at=state.closes_at,
    )


def amount_due(account: PayerAccount, claimed_micro: int, most_micro: int) -> int:
    """What to have signed for in all, as far as the budget goes; never less than what was signed.

    Args:
        claimed_micro: what the payee says that it is owed, in millionths.
        most_micro: what it may be owed: for what came of it, and for what it was asked beyond that, but of
            this no more than its window.
    """
    return max(account.signed, min(min(claimed_micro, most_micro) // MICRO, account.ceiling))


def stop_reason(
    account: PayerAccount, claimed_micro: int, most_micro: int, window: int, *, waiting: bool, again: bool
) -> StopReason | None:
    """Why a payee that waits goes on waiting; ``None``: it does not. To be asked once what is due is signed.

    Args:
        claimed_micro: as of :func:`amount_due`, as is ``most_micro``.
        window: what the payee serves before it is paid.
        waiting: whether it says that a session waits.
        again: whether it has claimed the same before.
    """
    if waiting and again and account.ceiling - account.signed < window:
        return "budget spent"  # it is paid, and waits for more than there is
    if not waiting or account.signed >= claimed_micro // MICRO:
        return None
    return "overcharged" if claimed_micro > most_micro else "budget spent"


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
