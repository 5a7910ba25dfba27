"""What x402's headers carry: JSON in base64. Only what is used here is read; the rest is the client's own.

https://github.com/x402-foundation/x402/blob/main/specs/x402-specification-v2.md
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta, Struct

from shoal.errors import UsageError
from shoal.ledger.vouchers.keys import SIGNATURE
from shoal.ledger.vouchers.typed_data import WORD, parse_address
from shoal.ledger.vouchers.voucher import MAX_AMOUNT, MAX_DELAY_S, MIN_DELAY_S, PaymentTerms
from shoal.ledger.x402.refusals import UNREADABLE, PaymentNotTaken

VERSION = 2
SCHEME = "batch-settlement"
MAX_HEADER = 16384
"""Characters: a payment with a deposit has about 3,000."""

HexAddress = Annotated[str, Meta(pattern="^0x[0-9a-fA-F]{40}$")]
DecimalText = Annotated[str, Meta(pattern="^[0-9]{1,39}$")]
Word = Annotated[str, Meta(pattern="^0x[0-9a-fA-F]{64}$")]
Signature = Annotated[str, Meta(pattern="^0x[0-9a-fA-F]{130}$")]


class _Message(Struct, frozen=True, rename="camel"):
    pass


class ChannelConfig(_Message, frozen=True):
    """The terms of a payment channel, as x402 names them."""

    payer: HexAddress
    payer_authorizer: HexAddress
    receiver: HexAddress
    receiver_authorizer: HexAddress
    token: HexAddress
    withdraw_delay: Annotated[int, Meta(ge=MIN_DELAY_S, le=MAX_DELAY_S)]
    salt: Word

    @property
    def terms(self) -> PaymentTerms:
        """The same, as it is signed.

        Raises:
            UsageError: the capitals of an address do not fit it.
        """
        return PaymentTerms(
            payer=parse_address(self.payer),
            payer_signer=parse_address(self.payer_authorizer),
            payee=parse_address(self.receiver),
            payee_signer=parse_address(self.receiver_authorizer),
            token=parse_address(self.token),
            delay_s=self.withdraw_delay,
            salt=bytes.fromhex(self.salt[2:]),
        )


class SignedVoucher(_Message, frozen=True):
    """So much in all is the payee's."""

    channel_id: Word
    max_claimable_amount: DecimalText
    signature: Signature

    @property
    def amount(self) -> int:
        """In the token's smallest unit."""
        return int(self.max_claimable_amount)

    @property
    def signature_bytes(self) -> bytes:
        """r, s and v."""
        return bytes.fromhex(self.signature[2:])


class TokenAuthorization(_Message, frozen=True):
    """The payer lets the collector take its tokens, once (ERC-3009)."""

    valid_after: DecimalText
    valid_before: DecimalText
    salt: Word
    signature: Signature

    @property
    def collector_data(self) -> bytes:
        """As x402's collector takes it: ``abi.encode(uint256, uint256, uint256, bytes)``."""
        numbers = (int(self.valid_after), int(self.valid_before), int(self.salt, 16), 4 * WORD, SIGNATURE)
        signature = bytes.fromhex(self.signature[2:])
        return b"".join(n.to_bytes(WORD, "big") for n in numbers) + signature.ljust(3 * WORD, b"\0")


class Authorizations(_Message, frozen=True):
    """By which way the tokens may be taken; of x402's two ways this one is served."""

    erc3009: TokenAuthorization = msgspec.field(name="erc3009Authorization")


class Deposit(_Message, frozen=True):
    """What is to go into escrow."""

    amount: DecimalText
    authorization: Authorizations


class DepositPayment(_Message, frozen=True, tag_field="type", tag="deposit"):
    """Opens a payment channel, or adds to it, and pays for one request."""

    channel_config: ChannelConfig
    voucher: SignedVoucher
    deposit: Deposit


class VoucherPayment(_Message, frozen=True, tag_field="type", tag="voucher"):
    """Pays for one request."""

    channel_config: ChannelConfig
    voucher: SignedVoucher


class RefundRequest(_Message, frozen=True, tag_field="type", tag="refund"):
    """Asks for what is left; the voucher shows who asks."""

    channel_config: ChannelConfig
    voucher: SignedVoucher
    amount: DecimalText | None = None


PaymentPayload: TypeAlias = DepositPayment | VoucherPayment | RefundRequest


class Accepted(_Message, frozen=True):
    """The offer that the client has chosen, as it understood it."""

    scheme: str
    network: str
    asset: HexAddress
    amount: DecimalText
    pay_to: HexAddress


class Payment(_Message, frozen=True):
    """What ``PAYMENT-SIGNATURE`` carries."""

    x402_version: int
    accepted: Accepted
    payload: PaymentPayload


_payments = msgspec.json.Decoder(Payment)


def read_payment(header: str) -> Payment:
    """What a client sent.

    Raises:
        PaymentNotTaken: it is no payment of this version and scheme.
    """
    if len(header) > MAX_HEADER:
        raise _unreadable(f"it has {len(header)} characters; at most {MAX_HEADER} are read")
    try:
        payment = _payments.decode(base64.b64decode(header, validate=True))
    except (binascii.Error, ValueError, RecursionError) as error:  # msgspec's are ValueErrors
        raise _unreadable(str(error)) from error
    if payment.x402_version != VERSION or payment.accepted.scheme != SCHEME:
        raise _unreadable(f"only version {VERSION} and the scheme {SCHEME} are taken")
    if payment.payload.voucher.amount > MAX_AMOUNT:
        raise _unreadable("its amount has more than 128 bits")
    return payment


def terms_of(payment: Payment) -> PaymentTerms:
    """The terms of the payment channel that it is paid over.

    Raises:
        PaymentNotTaken: an address in them is none.
    """
    try:
        return payment.payload.channel_config.terms
    except UsageError as error:
        raise _unreadable(error.message) from error


def encoded(message: dict[str, Any]) -> str:
    """As a header has it."""
    return base64.b64encode(msgspec.json.encode(message)).decode()


def _unreadable(why: str) -> PaymentNotTaken:
    return PaymentNotTaken(
        f"the header PAYMENT-SIGNATURE is not understood: {why[:200]}",
        reason=UNREADABLE,
        check="use a client of x402, version 2, with its scheme batch-settlement",
    )
