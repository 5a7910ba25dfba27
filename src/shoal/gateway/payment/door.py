"""Between the guard and the routes: who has no key pays, and hears in the head of the answer what it cost."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal.gateway.access.keys import PAYING, Caller
from shoal.gateway.error_forms import error_response
from shoal.gateway.errors import PaymentNeeded
from shoal.gateway.payment.collecting import Collector
from shoal.gateway.payment.till import Purchase, Till
from shoal.gateway.sse import EVENTS
from shoal.ledger.vouchers.payee import PayeeAccount
from shoal.ledger.vouchers.typed_data import show_address
from shoal.ledger.x402.messages import RefundRequest, encoded, read_payment
from shoal.ledger.x402.refusals import PaymentNotTaken

PAID = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/messages"})
"""What can be paid for: answers, whose tokens are counted."""
ASKED_FIRST = "payment required"


class PaymentDoor:
    """Lets through who has a key, and who pays."""

    def __init__(self, till: Till) -> None:
        self._till = till
        self._collector = Collector(till)

    def is_paid(self, path: str) -> bool:
        """Whether what is behind a path can be paid for."""
        return path in PAID

    def before(self, routes: ASGIApp) -> ASGIApp:
        """The routes, for who has a key or has paid."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if _is_paying(scope):
                await self._sell(routes, scope, receive, send)
            else:
                await routes(scope, receive, send)

        return guarded

    async def run(self) -> None:
        """Until cancelled: claim what was paid."""
        await self._collector.run()

    async def collect(self) -> int:
        """Claim all that is owed now, however little. Returns over how many payment channels.

        Raises:
            OutOfResources: the accounts cannot be read.
        """
        return await self._collector.collect(worth=1)

    async def _sell(self, routes: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        header = Headers(scope=scope).get("payment-signature")
        try:
            if header is None:
                raise self._needed(scope, ASKED_FIRST, "this gateway answers who pays or has an API key")
            payment = read_payment(header)
            if isinstance(payment.payload, RefundRequest):
                told = await self._till.give_back(payment)
                headers = {"payment-response": told}
                await JSONResponse({"message": "given back"}, headers=headers)(scope, receive, send)
                return
            async with self._till.taken(payment) as purchase:
                scope["caller"] = _buyer(scope["caller"], purchase)
                await routes(scope, receive, _telling(send, purchase))
        except PaymentNotTaken as error:
            needed = self._needed(scope, error.reason, error.message, error.check, error.account)
            await error_response(needed, scope)(scope, receive, send)

    def _needed(
        self, scope: Scope, reason: str, message: str, check: str = "", account: PayeeAccount | None = None
    ) -> PaymentNeeded:
        required = self._till.offer.required(str(Request(scope).url), reason, account)
        check = check or "pay with a client of x402 (scheme batch-settlement), or send an API key"
        return PaymentNeeded(message, required=encoded(required), check=check)


def _is_paying(scope: Scope) -> bool:
    """Whether nobody with a key asks: the guard may have made a copy of the caller."""
    caller = scope.get("caller")
    return isinstance(caller, Caller) and caller.id == PAYING.id


def _buyer(caller: Caller, purchase: Purchase) -> Caller:
    payer = show_address(purchase.account.terms.payer)
    return Caller(
        f"payer-{payer}",
        payer,
        protect=caller.protect,
        attested_only=caller.attested_only,
        most_tokens=purchase.till.offer.most_tokens,
        spend=purchase.spend,
    )


def _telling(send: Send, purchase: Purchase) -> Send:
    async def telling(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            streamed = headers.get("content-type", "").startswith(EVENTS)
            well = message["status"] < 400
            headers["payment-response"] = await purchase.head(well=well, streamed=streamed)
        await send(message)

    return telling
