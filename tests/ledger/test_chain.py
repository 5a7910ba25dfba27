"""A chain's node as it really is: it forgets, it is dear, it goes back on its word, it is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from requests.exceptions import ConnectionError as NoAnswer
from web3 import HTTPProvider

from shoal.errors import ChainError, UsageError
from shoal.ledger.chain.client import DOWN_S, ChainClient, _tuple, deploy
from shoal.ledger.chain.deployment import Deployment, read_deployment
from shoal.ledger.chain.pending import GIVE_UP_S, REPRICE_S
from shoal.ledger.contracts.artefacts import NAMES
from shoal.ledger.vouchers.keys import ChainKey
from shoal.ledger.vouchers.typed_data import ChainAddress, parse_address, show_address
from shoal.ledger.vouchers.voucher import PaymentTerms, sign_voucher
from tests.ledger.engines import Engine, anvil

ETHER = 10**18
PAYER, PAYEE = ChainKey.from_secret(b"\x21" * 32), ChainKey.from_secret(b"\x22" * 32)
TERMS = PaymentTerms(
    payer=PAYER.address, payer_signer=PAYER.address, payee=PAYEE.address, payee_signer=PAYEE.address
)


# --- A real node.


class Clock:
    """Time that passes only while somebody waits, and what happens meanwhile."""

    def __init__(self) -> None:
        self.now = 0.0
        self.then: Callable[[float], None] = lambda now: None

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.then(self.now)
        time.sleep(0.002)


class Link(HTTPProvider):
    """The way to the node, which may be cut."""

    cut = False

    def make_request(self, method: Any, params: Any) -> Any:
        if self.cut:
            raise NoAnswer("cut")
        return super().make_request(method, params)


class World:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.clock = Clock()
        url = str(engine.w3.provider.endpoint_uri)
        self.link = Link(url, exception_retry_configuration=None)
        for key in (PAYER, PAYEE):
            engine.give(show_address(key.address), 10 * ETHER)
        self.deployment = deploy(url, 31337, PAYER, confirmations=1, poll_s=0.002)
        self.client = self.connected(self.deployment)

    def connected(self, deployment: Deployment, confirmations: int = 1) -> ChainClient:
        options: dict[str, Any] = {"clock": lambda: self.clock.now, "sleep": self.clock.sleep, "poll_s": 10.0}
        return ChainClient(deployment, self.link, confirmations=confirmations, **options)

    @property
    def channel_id(self) -> bytes:
        return TERMS.channel_id(self.deployment.escrow)

    def at(self, seconds: float, act: Callable[[], Any]) -> None:
        """Have something happen once, when so much time has passed."""

        def then(now: float) -> None:
            if now >= seconds:
                self.clock.then = lambda now: None
                act()

        self.clock.then = then

    def automine(self, on: bool) -> None:
        self.engine.rpc("evm_setAutomine", on)

    def mine(self) -> None:
        self.engine.rpc("evm_mine")


@pytest.fixture(scope="module")
def module_world() -> Iterator[World]:
    with anvil(gas_price=10**9) as engine:
        yield World(engine)


@pytest.fixture
def world(module_world: World) -> Iterator[World]:
    """The chain as it was after the contracts came, whatever a test does."""
    snapshot = module_world.engine.rpc("evm_snapshot")
    module_world.clock.now = 0.0
    yield module_world
    module_world.clock.then = lambda now: None
    module_world.link.cut = False
    module_world.automine(True)
    module_world.engine.rpc("anvil_dropAllTransactions")
    module_world.engine.rpc("evm_revert", snapshot)


def told(act: Callable[[], Any]) -> str:
    with pytest.raises(ChainError) as error:
        act()
    return error.value.reason


def test_a_channel_is_opened_paid_out_closed_and_emptied(world: World) -> None:
    client = world.client
    client.check()
    client.deposit(PAYER, TERMS, 2 * ETHER)
    voucher = sign_voucher(PAYER, world.deployment.escrow, world.channel_id, ETHER)
    client.redeem(PAYEE, TERMS, voucher)
    assert client.balance(PAYEE.address) > 10.9 * ETHER
    client.request_close(PAYER, TERMS)
    state = client.escrow_state(world.channel_id)
    assert (state.deposit, state.redeemed) == (2 * ETHER, ETHER)
    assert state.closes_at == client.now() + TERMS.delay_s
    assert told(lambda: client.take_back(PAYER, TERMS)) == "not yet"
    world.engine.pass_time(TERMS.delay_s)
    client.take_back(PAYER, TERMS)
    state = client.escrow_state(world.channel_id)
    assert (state.deposit, state.redeemed, state.closes_at) == (ETHER, ETHER, None)


def test_a_redeem_that_the_contract_refuses_is_told_before_anything_is_sent(world: World) -> None:
    world.client.deposit(PAYER, TERMS, ETHER)
    nonce = world.engine.w3.eth.get_transaction_count(show_address(PAYEE.address))
    too_much = sign_voucher(PAYER, world.deployment.escrow, world.channel_id, 2 * ETHER)
    assert told(lambda: world.client.redeem(PAYEE, TERMS, too_much)) == "reverted"
    assert world.engine.w3.eth.get_transaction_count(show_address(PAYEE.address)) == nonce


def test_a_redeem_that_is_refused_after_it_was_sent_is_told_too(world: World) -> None:
    rich = world.engine.rich
    terms = msgspec.structs.replace(TERMS, payee_signer=parse_address(rich))
    world.client.deposit(PAYER, terms, ETHER)
    channel_id = terms.channel_id(world.deployment.escrow)
    voucher = sign_voucher(PAYER, world.deployment.escrow, channel_id, ETHER)
    world.automine(False)
    first = {"from": rich, "gas": 200_000, "maxPriorityFeePerGas": 10**11, "maxFeePerGas": 10**12}

    def overtake() -> None:
        # What empties the channel comes into the block first, by its higher tip.
        world.client.contract("Escrow").functions.give_back(_tuple(terms)).transact(first)
        world.mine()

    world.at(10, overtake)
    assert told(lambda: world.client.redeem(PAYEE, terms, voucher)) == "reverted"
    assert world.client.escrow_state(channel_id).redeemed == 0


def test_another_program_that_uses_the_key_is_noticed(world: World) -> None:
    world.automine(False)

    def overtake() -> None:
        payer = show_address(PAYER.address)
        world.engine.rpc("anvil_dropAllTransactions")
        world.engine.rpc("anvil_impersonateAccount", payer)
        world.engine.w3.eth.send_transaction({"from": payer, "to": payer, "value": 1})
        world.mine()

    world.at(10, overtake)
    assert told(lambda: world.client.deposit(PAYER, TERMS, ETHER)) == "dropped"


def test_a_transaction_that_the_node_drops_is_sent_again(world: World) -> None:
    world.automine(False)

    def drop() -> None:
        world.engine.rpc("anvil_dropAllTransactions")
        world.at(40, world.mine)

    world.at(10, drop)
    receipt = world.client.deposit(PAYER, TERMS, ETHER)
    assert receipt["status"] == 1
    assert world.client.escrow_state(world.channel_id).deposit == ETHER


def test_a_transaction_that_waits_too_long_is_sent_at_a_higher_price_and_happens_once(world: World) -> None:
    world.automine(False)
    prices: list[int] = []

    def note_price() -> None:
        (waiting,) = world.engine.w3.eth.get_block("pending", full_transactions=True)["transactions"]
        prices.append(waiting["maxPriorityFeePerGas"])

    def later() -> None:
        note_price()
        world.at(REPRICE_S + 20, lambda: (note_price(), world.mine()))

    world.at(10, later)
    world.client.deposit(PAYER, TERMS, ETHER)
    assert prices[1] * 10 >= prices[0] * 11
    assert world.client.escrow_state(world.channel_id).deposit == ETHER


def test_a_block_that_is_undone_is_not_believed_and_the_transaction_comes_again(world: World) -> None:
    client = world.connected(world.deployment, confirmations=3)
    undone: list[int] = []

    def undo() -> None:
        undone.append(world.client.escrow_state(world.channel_id).deposit)
        assert (
            client.escrow_state(world.channel_id).deposit == 0
        )  # who waits for blocks on it does not see it
        world.automine(False)
        world.engine.rpc("anvil_reorg", 1, [])
        world.engine.rpc("anvil_dropAllTransactions")
        undone.append(world.client.escrow_state(world.channel_id).deposit)
        world.automine(True)
        world.at(30, mine_more)

    def mine_more() -> None:
        for _ in range(3):
            world.mine()

    world.at(10, undo)
    receipt = client.deposit(PAYER, TERMS, ETHER)
    assert undone == [ETHER, 0]
    assert world.engine.w3.eth.block_number - receipt["blockNumber"] + 1 >= 3
    assert client.escrow_state(world.channel_id).deposit == ETHER


def test_a_node_that_is_down_for_an_hour_loses_no_transaction(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.automine(False)

    def cut() -> None:
        world.link.cut = True
        world.at(3610, back)

    def back() -> None:
        world.engine.rpc("anvil_dropAllTransactions")  # it was started anew
        world.link.cut = False
        world.at(3660, world.mine)

    world.at(10, cut)
    receipt = world.client.deposit(PAYER, TERMS, ETHER)
    assert receipt["status"] == 1
    assert world.clock.now >= 3660
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    assert world.client.escrow_state(world.channel_id).deposit == ETHER


def test_a_node_that_does_not_come_back_is_not_waited_for_without_end(world: World) -> None:
    world.automine(False)
    world.at(10, lambda: setattr(world.link, "cut", True))
    assert told(lambda: world.client.deposit(PAYER, TERMS, ETHER)) == "dropped"
    assert DOWN_S <= world.clock.now < 2 * DOWN_S


def test_a_transaction_that_never_comes_into_a_block_is_given_up_and_said_to_be_open(world: World) -> None:
    world.automine(False)
    assert told(lambda: world.client.deposit(PAYER, TERMS, ETHER)) == "dropped"
    assert GIVE_UP_S <= world.clock.now < 2 * GIVE_UP_S


def test_a_node_that_is_down_before_anything_is_sent_is_told_at_once(world: World) -> None:
    world.link.cut = True
    assert told(lambda: world.client.deposit(PAYER, TERMS, ETHER)) == "down"
    assert world.clock.now == 0
    nobody = Deployment("http://127.0.0.1:9", 31337, world.deployment.contracts)
    assert told(ChainClient(nobody).check) == "down"


def test_a_node_of_another_chain_gets_nothing(world: World) -> None:
    other = Deployment(world.deployment.url, 11155111, world.deployment.contracts)
    client = world.connected(other)
    assert told(client.check) == "other chain"
    assert told(lambda: client.deposit(PAYER, TERMS, ETHER)) == "other chain"


def test_an_address_without_our_contract_is_noticed(world: World) -> None:
    swapped = dict(world.deployment.contracts)
    swapped["Escrow"] = swapped["Anchor"]
    assert told(world.connected(Deployment(world.deployment.url, 31337, swapped)).check) == "no contract"


def test_who_has_too_little_is_told_before_anything_is_sent(world: World) -> None:
    poor = ChainKey.from_secret(b"\x23" * 32)
    world.engine.give(show_address(poor.address), 10**12)
    terms = PaymentTerms(
        payer=poor.address, payer_signer=poor.address, payee=PAYEE.address, payee_signer=PAYEE.address
    )
    assert told(lambda: world.client.deposit(poor, terms, 10**11)) == "poor"
    assert told(lambda: world.client.deposit(poor, terms, 10**13)) == "poor"


class Nonsense(BaseHTTPRequestHandler):
    """What is at an address that is no node's."""

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>Welcome</html>")

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_what_is_no_node_at_all_is_told(world: World) -> None:
    with HTTPServer(("127.0.0.1", 0), Nonsense) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert told(ChainClient(Deployment(url, 31337, world.deployment.contracts)).check) == "nonsense"
        server.shutdown()


# --- Which chain is used.


def test_a_deployment_is_read_as_it_was_written(tmp_path: Path) -> None:
    addresses = {name: ChainAddress(bytes([n]) * 20) for n, name in enumerate(NAMES, 1)}
    written = Deployment("http://127.0.0.1:8545", 31337, addresses)
    (tmp_path / "chain.toml").write_text(written.encoded())
    assert read_deployment(tmp_path / "chain.toml") == written


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("31337", "1"), "no test chain"),
        (("31337", '"31337"'), "chain_id"),
        (("http:", "ftp:"), "no address"),
        (("escrow", "escrows"), "escrow"),
        (("0x", "1x"), "no address"),
        (("url", "x = 1\nurl"), "unknown"),
        (("=", ""), "not valid TOML"),
    ],
)
def test_a_chain_toml_that_cannot_be_right_is_refused(
    tmp_path: Path, change: tuple[str, str], why: str
) -> None:
    addresses = {name: ChainAddress(bytes([n]) * 20) for n, name in enumerate(NAMES, 1)}
    written = Deployment("http://127.0.0.1:8545", 31337, addresses).encoded()
    (tmp_path / "chain.toml").write_text(written.replace(*change))
    with pytest.raises(UsageError, match=why):
        read_deployment(tmp_path / "chain.toml")
    with pytest.raises(UsageError, match="no chain is set up"):
        read_deployment(tmp_path / "none.toml")


def test_money_that_is_worth_something_is_refused_before_the_node_is_asked() -> None:
    with pytest.raises(UsageError, match="no test chain"):
        deploy("http://127.0.0.1:9", 1, PAYER)
