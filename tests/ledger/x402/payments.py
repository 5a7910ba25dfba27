"""A payer, an offer, and payments as x402's clients write them."""

from __future__ import annotations

import base64
import json
from typing import Any

from x402.mechanisms.evm.batch_settlement import types, utils

from shoal.ledger.vouchers.keys import ChainKey, recover
from shoal.ledger.vouchers.payee import PayeeAccount
from shoal.ledger.vouchers.typed_data import show_address
from shoal.ledger.vouchers.voucher import PaymentTerms, sign_voucher
from shoal.ledger.x402.offer import GatewayOffer
from shoal.ledger.x402.taking import pay_request

PAYER, OURS = (ChainKey.from_secret(bytes([n]) * 32) for n in (0x71, 0x72))
TOKEN, PAYEE = bytes([7]) * 20, bytes([8]) * 20
OFFER = GatewayOffer(
    chain_id=84532,
    token=TOKEN,
    token_name="USDC",
    token_version="2",
    payee=PAYEE,
    signer=OURS.address,
    price=1_700_000,
    most_tokens=100,
    least_deposit=1000,
    delay_s=86400,
)
TERMS = PaymentTerms(
    payer=PAYER.address, payer_signer=PAYER.address, payee=PAYEE, payee_signer=OURS.address, token=TOKEN
)


def account(**changes: Any) -> PayeeAccount:
    channel_id = TERMS.channel_id(OFFER.domain)
    given = {"deposit": 10**9, "window": 0} | changes
    return PayeeAccount(terms=TERMS, domain=OFFER.domain, channel_id=channel_id, **given)


def paid(found: PayeeAccount, amount: int, key: ChainKey = PAYER) -> PayeeAccount:
    voucher = sign_voucher(key, OFFER.domain, found.channel_id, amount)
    return pay_request(found, OFFER, voucher, recover, now=0.0)


def config() -> types.ChannelConfig:
    return types.ChannelConfig(
        payer=show_address(PAYER.address),
        payer_authorizer=show_address(PAYER.address),
        receiver=show_address(PAYEE),
        receiver_authorizer=show_address(OURS.address),
        token=show_address(TOKEN),
        withdraw_delay=86400,
        salt="0x" + "00" * 32,
    )


def payment(**changes: Any) -> dict[str, Any]:
    named = utils.compute_channel_id(config(), OFFER.chain_id)
    voucher = {"channelId": named, "maxClaimableAmount": "170", "signature": "0x" + "11" * 65}
    payload = {"type": "voucher", "channelConfig": config().to_dict(), "voucher": voucher}
    return {"x402Version": 2, "accepted": OFFER.requirements(), "payload": payload} | changes


def header(message: Any) -> str:
    return base64.b64encode(json.dumps(message).encode()).decode()
