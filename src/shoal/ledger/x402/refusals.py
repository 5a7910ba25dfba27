"""Why a payment is not taken, in the words that x402's clients know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from shoal.errors import PaymentError
from shoal.ledger.vouchers.payee import PayeeAccount

MISMATCH: Final = "invalid_batch_settlement_evm_cumulative_amount_mismatch"
"""The one word to which a client answers by reading anew what it has been charged."""
BUSY: Final = "invalid_batch_settlement_evm_channel_busy"
UNKNOWN_CHANNEL: Final = "invalid_batch_settlement_evm_channel_not_found"
OVER_DEPOSIT: Final = "invalid_batch_settlement_evm_cumulative_exceeds_balance"
DEPOSIT_FAILED: Final = "invalid_batch_settlement_evm_deposit_transaction_failed"
SMALL_DEPOSIT: Final = "invalid_batch_settlement_evm_deposit_below_min_deposit"
WRONG_CHANNEL: Final = "invalid_batch_settlement_evm_channel_id_mismatch"
SIGNATURE: Final = "invalid_batch_settlement_evm_voucher_signature"
CLOSING: Final = "shoal_channel_is_closing"
OTHER_OFFER: Final = "shoal_other_offer"
NOTHING_LEFT: Final = "invalid_batch_settlement_evm_refund_no_balance"
REFUND_LATER: Final = "shoal_refund_later"
UNREADABLE: Final = "invalid_batch_settlement_evm_voucher_payload"

OF_VOUCHERS: Mapping[str, str] = {
    "other channel": WRONG_CHANNEL,
    "overflow": OVER_DEPOSIT,
    "over deposit": OVER_DEPOSIT,
    "stale": MISMATCH,
    "replayed": MISMATCH,
    "signature": SIGNATURE,
}
"""What a refused voucher's reason is called there."""


class PaymentNotTaken(PaymentError):
    """``reason``: one of the words above. Nothing was charged.

    Args:
        account: the payment channel, where its payer has shown itself and is to hear what it was charged.
    """

    code = "payment_not_taken"

    def __init__(
        self, message: str, *, reason: str, check: str = "", account: PayeeAccount | None = None
    ) -> None:
        super().__init__(message, reason=reason, check=check)
        self.account = account
