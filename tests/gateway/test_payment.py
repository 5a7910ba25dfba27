"""Who has no key pays: an unmodified client of x402, over one payment channel, until its budget is spent."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import trio
from eth_account import Account
from x402 import x402Client
from x402.http.clients.httpx import x402_httpx_transport
from x402.mechanisms.evm.batch_settlement.client import (
    BatchSettlementEvmScheme,
    BatchSettlementEvmSchemeOptions,
)

from shoal.gateway.payment.door import PaymentDoor
from shoal.gateway.payment.opening import accounts
from shoal.gateway.payment.till import Till
from shoal.ledger.chain.client import ChainClient
from shoal.ledger.chain.deployment import Deployment
from shoal.ledger.contracts.artefacts import NAMES
from shoal.ledger.vouchers.keys import ChainKey
from shoal.ledger.vouchers.typed_data import ChainAddress, show_address
from shoal.ledger.x402.offer import Offer
from shoal.ledger.x402.settlement import SettlementClient
from tests.ledger.engines import Engine
from tests.ledger.x402.contracts import TOKEN, contract, engine_with_x402

from .conftest import Served, served, user

PRICE = 2_000_000
"""Two of the smallest unit for each token of text."""
MOST_TOKENS = 64
CEILING = 128
DELAY_S = 3600
KEY = ChainKey.from_secret(b"\x51" * 32)
PAYEE = ChainAddress(b"\x52" * 20)


@dataclass
class Market:
    """A gateway that is paid, and the chain."""

    gateway: Served
    engine: Engine
    till: Till
    door: PaymentDoor

    @property
    def token(self) -> Any:
        return self.engine.w3.eth.contract(address=show_address(TOKEN), abi=contract("Token")["abi"])

    def has(self, address: bytes | str) -> int:
        shown = address if isinstance(address, str) else show_address(address)
        return self.token.functions.balanceOf(shown).call()

    async def settled(self) -> Any:
        """The one account, once all that was used is counted."""
        with trio.fail_after(5):
            while self.till._open:  # noqa: ASYNC110
                await trio.sleep(0.005)
        return self.account()

    def account(self) -> Any:
        (channel_id,) = self.till.book.channel_ids()
        return self.till.book.read(channel_id)


class Agent:
    """An unmodified client of x402 with a budget, over httpx."""

    def __init__(self, market: Market, budget: int, salt: int = 0) -> None:
        self.key = Account.create()
        market.engine.send(market.token.functions.mint(self.key.address, budget), market.engine.rich)
        spent = False

        def strategy(context: Any) -> str | bool:
            nonlocal spent
            first, spent = not spent, True
            return str(budget) if first else False

        options = BatchSettlementEvmSchemeOptions(
            deposit_strategy=strategy, salt="0x" + salt.to_bytes(32, "big").hex()
        )
        network = market.till.offer.network
        self.x402 = x402Client()
        self.scheme = BatchSettlementEvmScheme(self.key, options)
        self.x402.register(network, self.scheme)
        self.x402.set_spend_controls(
            {"allowed_assets": [{"network": network, "asset": show_address(TOKEN)}]}
        )
        self.sent: list[httpx.Request] = []

    @asynccontextmanager
    async def http(self, url: str) -> Any:
        transport = x402_httpx_transport(self.x402, _Noting(self))
        async with httpx.AsyncClient(base_url=url, transport=transport, timeout=30) as http:
            yield http


class _Noting(httpx.AsyncHTTPTransport):
    """What went over the wire, for tests that send it again."""

    def __init__(self, agent: Agent) -> None:
        super().__init__(verify=False)
        self.agent = agent

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.agent.sent.append(request)
        return await super().handle_async_request(request)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return engine_with_x402()


@asynccontextmanager
async def market_of(home: Any, checkpoint: Any, engine: Engine) -> Any:
    chain_id = engine.w3.eth.chain_id
    nowhere = Deployment("http://127.0.0.1:9", chain_id, dict.fromkeys(NAMES, ChainAddress(bytes(20))))
    client = SettlementClient(ChainClient(nowhere, engine.w3.provider, poll_s=0.002))
    client.check(TOKEN)
    facts = client.token_facts(TOKEN)
    engine.give(show_address(KEY.address))
    offer = Offer(
        chain_id=chain_id,
        token=TOKEN,
        token_name=facts.name,
        token_version=facts.version,
        payee=PAYEE,
        signer=KEY.address,
        price=PRICE,
        most_tokens=MOST_TOKENS,
        least_deposit=CEILING,
        delay_s=DELAY_S,
    )
    till = Till(offer, client, KEY, accounts(home))
    door = PaymentDoor(till)
    async with served(home, checkpoint, payment=door) as gateway:
        yield Market(gateway, engine, till, door)


@pytest.fixture
async def market(tmp_path, checkpoint, engine):
    async with market_of(tmp_path, checkpoint, engine) as found:
        yield found


def question(market: Market, stream: bool = True, **fields: Any) -> dict[str, Any]:
    asked = {"model": market.gateway.model, "messages": [user("hello")], "max_tokens": 4, "temperature": 0}
    return asked | {"stream": stream, "stream_options": {"include_usage": True} if stream else None} | fields


def used(answer: httpx.Response) -> int:
    """The tokens that an answer says it took."""
    if "event-stream" not in answer.headers["content-type"]:
        return answer.json()["usage"]["total_tokens"]
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.startswith("data: {")]
    return json.loads(lines[-1])["usage"]["total_tokens"]


async def test_an_unmodified_client_pays_for_100_streams_over_one_channel_and_balances_add_up(market):
    agent, before = Agent(market, budget=10_000), market.has(PAYEE)
    tokens = 0
    async with agent.http(market.gateway.url) as http:
        for _ in range(100):
            answer = await http.post("/v1/chat/completions", json=question(market))
            assert answer.status_code == 200, answer.text
            tokens += used(answer)
    account = await market.settled()
    assert account.owed == 2 * tokens
    assert account.deposit == 10_000
    assert 0 <= account.told - account.owed <= CEILING + 100
    await market.door._collector.collect(1)
    assert market.has(PAYEE) - before == 2 * tokens
