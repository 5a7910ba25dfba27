"""Who has no key pays: an unmodified client of x402, over one payment channel, until its budget is spent."""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from anyio.from_thread import start_blocking_portal

from shoal.cli.gateway import process
from shoal.gateway import app
from shoal.gateway.access.keys import KeyLimits, create
from shoal.gateway.payment.door import PaymentDoor
from shoal.gateway.payment.opening import accounts
from shoal.gateway.payment.till import Till
from shoal.ledger.chain.client import ChainClient
from shoal.ledger.chain.deployment import Deployment
from shoal.ledger.chain.rpc import connect
from shoal.ledger.contracts.artefacts import NAMES
from shoal.ledger.recursion import recursion_limit_kept
from shoal.ledger.vouchers.keys import ChainKey
from shoal.ledger.vouchers.payee import PayeeAccount
from shoal.ledger.vouchers.typed_data import ChainAddress, show_address
from shoal.ledger.x402.offer import GatewayOffer
from shoal.ledger.x402.settlement import SettlementClient
from shoal.types import Span
from tests.ledger.engines import Engine
from tests.ledger.x402.contracts import TOKEN, contract, engine_with_x402

from .conftest import Served, served, user

with recursion_limit_kept():
    from eth_account import Account
    from x402 import x402Client
    from x402.http.clients.httpx import x402_httpx_transport
    from x402.mechanisms.evm.batch_settlement.client import (
        BatchSettlementEvmScheme,
        BatchSettlementEvmSchemeOptions,
    )
    from x402.mechanisms.evm.signers import EthAccountSigner

PRICE = 2_000_000
"""Two of the smallest unit for each token of text."""
MOST_TOKENS = 64
CEILING = 128
DELAY_S = 3600
PAID = "payment-signature"
EXAMPLES = Path(__file__).parents[2] / "examples"
KEY = ChainKey.from_secret(b"\x51" * 32)
PAYEE = ChainAddress(b"\x52" * 20)


@dataclass
class Market:
    """A gateway that is paid, and the chain."""

    gateway: Served
    engine: Engine
    till: Till
    door: PaymentDoor
    portal: Any = None
    """Runs something in the gateway's own thread."""

    @property
    def token(self) -> Any:
        return self.engine.w3.eth.contract(address=show_address(TOKEN), abi=contract("Token")["abi"])

    def has(self, address: bytes | str) -> int:
        shown = address if isinstance(address, str) else show_address(address)
        return self.token.functions.balanceOf(shown).call()

    async def settled(self, agent: Agent) -> PayeeAccount:
        """The account of an agent, once all that was used is counted."""
        with trio.fail_after(25):
            while self.till._open:  # noqa: ASYNC110
                await trio.sleep(0.005)
        return self.account(agent)

    def account(self, agent: Agent) -> PayeeAccount:
        kept = map(self.till.book.read, self.till.book.channel_ids())
        (found,) = (one for one in kept if show_address(one.terms.payer) == agent.key.address)
        return found

    async def collect(self, worth: int = 1) -> int:
        """Claim in the gateway's own thread, for which this one must not stand still."""
        collect = partial(self.door._collector.collect, worth) if worth > 1 else self.door.collect
        return await trio.to_thread.run_sync(self.portal.call, collect)


class Agent:
    """An unmodified client of x402 with a budget, over httpx."""

    def __init__(self, market: Market, budget: int, key: Any = None, *, reading: bool = False) -> None:
        self.key = key or Account.create()
        market.engine.send(market.token.functions.mint(self.key.address, budget), market.engine.rich)
        spent = False

        def strategy(context: Any) -> str | bool:
            nonlocal spent
            first, spent = not spent, True
            return str(budget) if first else False

        options = BatchSettlementEvmSchemeOptions(deposit_strategy=strategy)
        signer = Reading(self.key, market.engine) if reading else EthAccountSigner(self.key)
        network = market.till.offer.network
        self.x402 = x402Client()
        self.scheme = BatchSettlementEvmScheme(signer, options)
        self.x402.register(network, self.scheme)
        self.x402.set_spend_controls({"allowed_assets": [{"network": network, "asset": show_address(TOKEN)}]})
        self.sent: list[httpx.Request] = []

    @asynccontextmanager
    async def http(self, url: str) -> Any:
        transport = x402_httpx_transport(self.x402, _Noting(self))
        async with httpx.AsyncClient(base_url=url, transport=transport, timeout=30) as http:
            yield http


class Reading(EthAccountSigner):
    """A signer that also asks the chain, as x402's own does by HTTP."""

    def __init__(self, account: Any, engine: Engine) -> None:
        super().__init__(account)
        self.engine = engine

    def read_contract(self, address: str, abi: Any, name: str, *arguments: Any) -> Any:
        return self.engine.w3.eth.contract(address=address, abi=abi).functions[name](*arguments).call()


class _Noting(httpx.AsyncHTTPTransport):
    """What went over the wire, for tests that send it again."""

    def __init__(self, agent: Agent) -> None:
        super().__init__(verify=False)
        self.agent = agent

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.agent.sent.append(request)
        return await super().handle_async_request(request)


@asynccontextmanager
async def market_of(home: Any, checkpoint: Any, engine: Engine) -> Any:
    chain_id = engine.w3.eth.chain_id
    nowhere = Deployment("http://127.0.0.1:9", chain_id, dict.fromkeys(NAMES, ChainAddress(bytes(20))))
    client = SettlementClient(ChainClient(nowhere, engine.w3.provider, poll_s=0.002))
    client.check(TOKEN)
    facts = client.token_facts(TOKEN)
    engine.give(show_address(KEY.address))
    offer = GatewayOffer(
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
    async with served(home, checkpoint, [Span(0, 6)], payment=door) as gateway:
        yield Market(gateway, engine, till, door)


@pytest.fixture(scope="module")
def standing(tmp_path_factory, checkpoint):
    """A market in a thread of its own, for all tests: each has an agent of its own."""
    home = tmp_path_factory.mktemp("market")
    with (
        start_blocking_portal("trio") as portal,
        portal.wrap_async_context_manager(market_of(home, checkpoint, engine_with_x402())) as found,
    ):
        yield replace(found, portal=portal)


@pytest.fixture
async def market(standing):
    async with httpx.AsyncClient(base_url=standing.gateway.url, timeout=30, verify=False) as http:
        yield replace(standing, gateway=replace(standing.gateway, http=http))


def question(market: Market, stream: bool = True, **fields: Any) -> dict[str, Any]:
    asked = {"model": market.gateway.model, "messages": [user("hello")], "max_tokens": 2, "temperature": 0}
    return asked | {"stream": stream, "stream_options": {"include_usage": True} if stream else None} | fields


def used(answer: httpx.Response) -> int:
    """The tokens that an answer says it took."""
    if "event-stream" not in answer.headers["content-type"]:
        return answer.json()["usage"]["total_tokens"]
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.startswith("data: {")]
    return json.loads(lines[-1])["usage"]["total_tokens"]


def decoded(header: str) -> Any:
    return json.loads(base64.b64decode(header))


def coded(message: Any) -> str:
    return base64.b64encode(json.dumps(message).encode()).decode()


def terms_tuple(terms: Any) -> Any:
    addresses = (terms.payer, terms.payer_signer, terms.payee, terms.payee_signer, terms.token)
    return (*map(show_address, addresses), terms.delay_s, terms.salt)


async def test_an_unmodified_client_pays_for_many_streams_over_one_channel_and_balances_add_up(market):
    agent, before = Agent(market, budget=10_000), market.has(PAYEE)
    tokens = 0
    async with agent.http(market.gateway.url) as http:
        for _ in range(30):
            answer = await http.post("/v1/chat/completions", json=question(market))
            assert answer.status_code == 200, answer.text
            tokens += used(answer)
    account = await market.settled(agent)
    assert account.owed == 2 * tokens
    assert account.deposit == 10_000
    assert 0 <= account.told - account.owed <= CEILING + 100
    assert await market.collect() == 1
    assert market.has(PAYEE) - before == 2 * tokens


async def test_it_stops_at_its_budget_with_402(market):
    agent = Agent(market, budget=3 * CEILING)
    async with agent.http(market.gateway.url) as http:
        answers = [await http.post("/v1/chat/completions", json=question(market)) for _ in range(8)]
    kinds = [answer.status_code for answer in answers]
    well = kinds.index(402)
    assert well >= 2
    assert set(kinds[:well]) == {200}
    assert set(kinds[well:]) == {402}
    assert "in escrow" in answers[-1].json()["error"]["message"]
    account = await market.settled(agent)
    assert account.owed == 2 * sum(map(used, answers[:well])) <= account.deposit == 3 * CEILING


async def test_what_is_not_streamed_is_charged_to_the_token_in_its_own_head(market):
    agent = Agent(market, budget=2000)
    async with agent.http(market.gateway.url) as http:
        first, second = [
            await http.post("/v1/chat/completions", json=question(market, stream=False)) for _ in range(2)
        ]
    for answer in (first, second):
        told = decoded(answer.headers["payment-response"])
        assert told["extra"]["chargedAmount"] == str(2 * used(answer))
    account = await market.settled(agent)
    assert account.told == account.owed == 2 * (used(first) + used(second))


async def test_replayed_stale_and_forged_vouchers_are_refused_and_cost_nothing(market):
    agent = Agent(market, budget=2000)
    async with agent.http(market.gateway.url) as http:
        for _ in range(2):
            assert (await http.post("/v1/chat/completions", json=question(market))).status_code == 200
    paid = [request.headers["payment-signature"] for request in agent.sent if PAID in request.headers]
    before = await market.settled(agent)
    older, newest = (decoded(header) for header in paid)

    async def send(payment):
        return await market.gateway.chat(headers={PAID: coded(payment)}, max_tokens=4)

    forged = json.loads(json.dumps(newest))
    more = before.told + CEILING
    forged["payload"]["voucher"]["maxClaimableAmount"] = str(more)
    other = json.loads(json.dumps(newest))
    other["payload"]["channelConfig"]["salt"] = "0x" + "77" * 32
    cheaper = json.loads(json.dumps(newest))
    cheaper["accepted"]["amount"] = "1"
    for payment, reason in (
        (newest, "invalid_batch_settlement_evm_cumulative_amount_mismatch"),
        (older, "invalid_batch_settlement_evm_cumulative_amount_mismatch"),
        (forged, "invalid_batch_settlement_evm_voucher_signature"),
        (other, "invalid_batch_settlement_evm_channel_id_mismatch"),
        (cheaper, "shoal_other_offer"),
        ({"x402Version": 2}, "invalid_batch_settlement_evm_voucher_payload"),
    ):
        answer = await send(payment)
        assert (answer.status_code, decoded(answer.headers["payment-required"])["error"]) == (402, reason)
        # Only the payer hears what it has signed: whoever had its voucher might use it.
        shown = "voucherState" in decoded(answer.headers["payment-required"])["accepts"][0]["extra"]
        assert shown == (payment in (newest, older))
    assert market.account(agent) == before


async def test_a_request_that_fails_is_not_charged_and_its_deposit_is_not_forgotten(market):
    agent = Agent(market, budget=2000)
    async with agent.http(market.gateway.url) as http:
        wrong = await http.post("/v1/chat/completions", json=question(market, max_tokens=4000))
        assert wrong.status_code == 400
        assert "one request may use 64" in wrong.json()["error"]["message"]
        assert decoded(wrong.headers["payment-response"])["extra"]["chargedAmount"] == "0"
        assert (await http.post("/v1/chat/completions", json=question(market))).status_code == 200
    assert (await market.settled(agent)).deposit == 2000


async def test_an_answer_without_a_limit_gets_what_was_paid_for(market):
    agent = Agent(market, budget=2000)
    async with agent.http(market.gateway.url) as http:
        answer = await http.post("/v1/chat/completions", json=question(market, max_tokens=None))
    assert answer.status_code == 200
    assert used(answer) <= MOST_TOKENS


async def test_two_streams_at_once_are_both_covered_by_the_newest_voucher(market, monkeypatch):
    agent, gate, count = Agent(market, budget=2000), threading.Event(), Till.count

    async def held(till, purchase):
        assert await trio.to_thread.run_sync(gate.wait, 20)
        await count(till, purchase)

    monkeypatch.setattr(Till, "count", held)
    async with agent.http(market.gateway.url) as http:
        sending = http.stream("POST", "/v1/chat/completions", json=question(market))
        async with sending as first:
            assert first.status_code == 200
            second = await http.post("/v1/chat/completions", json=question(market))
            gate.set()
            await first.aread()
    assert second.status_code == 200
    # Nothing of the first is counted yet: nothing is taken off what the second is told.
    assert decoded(second.headers["payment-response"])["extra"]["chargedAmount"] == str(CEILING)
    account = await market.settled(agent)
    assert account.owed <= account.told <= account.paid


async def test_a_client_that_lost_its_state_reads_it_anew(market):
    agent = Agent(market, budget=2000)
    async with agent.http(market.gateway.url) as http:
        assert (await http.post("/v1/chat/completions", json=question(market))).status_code == 200
    again = Agent(market, budget=0, key=agent.key, reading=True)
    async with again.http(market.gateway.url) as http:
        assert (await http.post("/v1/chat/completions", json=question(market))).status_code == 200
    account = await market.settled(agent)
    assert account.deposit == 2000
    assert account.owed > 0


async def test_the_payer_has_back_what_is_left_when_it_asks(market):
    agent = Agent(market, budget=2000)
    async with agent.http(market.gateway.url) as http:
        answer = await http.post("/v1/chat/completions", json=question(market, stream=False))
    before = market.has(PAYEE)
    url = f"{market.gateway.url}/v1/chat/completions"
    settled = await trio.to_thread.run_sync(agent.scheme.refund, url)
    assert settled.success
    assert market.has(agent.key.address) == 2000 - 2 * used(answer)
    assert market.has(PAYEE) - before == 2 * used(answer)
    async with agent.http(market.gateway.url) as http:  # all of the budget that there was is given back
        assert (await http.post("/v1/chat/completions", json=question(market))).status_code == 402


async def test_what_is_owed_is_claimed_before_a_payer_that_closes_has_its_money_back(market, monkeypatch):
    agent = Agent(market, budget=2000)
    async with agent.http(market.gateway.url) as http:
        answer = await http.post("/v1/chat/completions", json=question(market))
    account = await market.settled(agent)
    engine, payer = market.engine, agent.key
    engine.give(payer.address, 10**18)
    contract_of = engine.w3.eth.contract(
        address=show_address(account.domain.contract), abi=contract("Settlement")["abi"]
    )
    call = contract_of.functions.initiateWithdraw(terms_tuple(account.terms), 2000)
    options = {"from": payer.address, "nonce": 0, "gas": 200_000, "gasPrice": engine.w3.eth.gas_price}
    signed = payer.sign_transaction(call.build_transaction(options))
    engine.receipt(engine.w3.eth.send_raw_transaction(signed.raw_transaction))
    before = market.has(PAYEE)
    assert await market.collect(worth=10**9) == 1
    assert market.has(PAYEE) - before == 2 * used(answer)
    later = engine.w3.eth.get_block("latest")["timestamp"] + DELAY_S / 2 + 1
    monkeypatch.setattr(market.till, "clock", lambda: later)
    async with agent.http(market.gateway.url) as http:
        refused = await http.post("/v1/chat/completions", json=question(market))
    assert decoded(refused.headers["payment-required"])["error"] == "shoal_channel_is_closing"


async def test_only_answers_are_sold_and_who_has_a_key_pays_nothing(market):
    key, _ = create(market.gateway.gateway.database, "friend", KeyLimits(), admin=False)
    market.gateway.gateway.keys.refresh()
    assert (await market.gateway.chat()).status_code == 402
    assert (await market.gateway.chat(headers={"authorization": f"Bearer {key}"})).status_code == 200
    assert (await market.gateway.http.get("/v1/models")).status_code == 401
    assert (await market.gateway.chat(headers={"x-api-key": "sk-shoal-unknown"})).status_code == 401


async def test_a_chain_that_does_not_answer_is_a_503_without_its_address(market, monkeypatch):
    agent = Agent(market, budget=2000)
    monkeypatch.setattr(market.till.client.chain, "_w3", connect("http://127.0.0.1:9"))
    async with agent.http(market.gateway.url) as http:
        answer = await http.post("/v1/chat/completions", json=question(market))
    assert answer.status_code == 503
    assert "127.0.0.1" not in answer.text


def test_without_the_setting_nothing_of_chains_is_imported():
    """Neither by the gateway, outside of the room that is opened only then, nor by the command."""
    room = Path(app.__file__).parent
    outside = [path for path in room.rglob("*.py") if path.parent.name != "payment"]
    assert len(outside) > 50
    # One reads the books that are there, where somebody has paid.
    assert [path.name for path in outside if "shoal.ledger" in path.read_text()] == ["money.py"]
    everywhere = [*outside, Path(process.__file__)]
    lines = [line for path in everywhere for line in path.read_text().splitlines()]
    opened = [line for line in lines if "gateway.payment" in line]
    assert opened == ["        from shoal.gateway.payment.opening import paid_door"]


async def test_the_agent_of_the_examples_buys_its_answers_and_stops_when_its_budget_is_spent(market):
    agent = Agent(market, budget=3 * CEILING)
    told = await trio.run_process(
        [
            *(sys.executable, EXAMPLES / "agent_with_budget.py"),
            *(str(3 * CEILING), market.gateway.model, *["hello"] * 9),
        ],
        env=os.environ | {"SHOAL_GATEWAY": market.gateway.url, "AGENT_KEY": "0x" + agent.key.key.hex()},
        capture_stdout=True,
    )
    *bought, last = told.stdout.decode().splitlines()
    answers = [line for line in bought if line.startswith("hello  [")]
    assert last == f"the budget is spent: {len(answers)} answers bought"
    account = await market.settled(agent)
    assert account.owed == sum(int(line.split("[")[1].split("]")[0]) for line in answers) > CEILING
    assert account.owed + CEILING > account.deposit == 3 * CEILING
