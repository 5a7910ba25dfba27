"""What is done about a transaction, of what is seen; and a node that answers what it should not."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from requests.exceptions import ConnectionError as NoAnswer
from web3.providers.base import BaseProvider

from shoal.errors import ChainError
from shoal.ledger.chain.client import DOWN_S, ChainClient
from shoal.ledger.chain.deployment import Deployment
from shoal.ledger.chain.pending import (
    GIVE_UP_S,
    MOST_RAISES,
    MOST_REFUSALS,
    OVERTAKEN_POLLS,
    REPRICE_S,
    Action,
    Fees,
    Pending,
    TransactionView,
    next_action,
)
from shoal.ledger.contracts.artefacts import NAMES
from shoal.ledger.vouchers.keys import ChainKey
from shoal.ledger.vouchers.typed_data import ChainAddress

SENT = Pending(nonce=7, fees=Fees(10, 100), began=0.0, sent=0.0, taken=True)
KEY = ChainKey.from_secret(b"\x51" * 32)


def sight(**changes: Any) -> TransactionView:
    return TransactionView(**({"known": True, "head": 100, "nonce": 7} | changes))


@pytest.mark.parametrize(
    ("what", "now", "action"),
    [
        (sight(), 1.0, "wait"),
        (sight(known=False), 1.0, "send again"),
        (sight(), REPRICE_S, "reprice"),
        (sight(block=99, nonce=8), 1.0, "wait"),
        (sight(block=98, nonce=8), 1.0, "done"),
        (sight(block=98, nonce=8, well=False), 1.0, "reverted"),
        (sight(block=99, nonce=8, well=False), 1.0, "wait"),
        (sight(known=False, nonce=8), 1.0, "wait"),
        (sight(nonce=8), REPRICE_S, "wait"),
        (sight(), GIVE_UP_S, "give up"),
        (sight(block=99, nonce=8), GIVE_UP_S, "give up"),
        (sight(block=98, nonce=8), GIVE_UP_S, "done"),
    ],
)
def test_what_is_done_about_a_transaction(what: TransactionView, now: float, action: str) -> None:
    assert next_action(SENT.seen(what), what, now, confirmations=3) == action


def test_a_price_is_raised_by_enough_and_not_without_end() -> None:
    pending = SENT
    for n in range(MOST_RAISES):
        now = REPRICE_S * (n + 1)
        before = pending.fees
        assert next_action(pending, sight(), now, 3) == "reprice"
        pending = pending.repriced(now)
        assert pending.fees.tip * 10 >= before.tip * 11
        assert pending.fees.most * 10 >= before.most * 11
    assert next_action(pending, sight(), pending.sent + REPRICE_S, 3) == "wait"
    assert pending.fees.most < 20 * SENT.fees.most


def test_a_price_is_not_raised_above_what_is_allowed() -> None:
    pending = Pending(nonce=7, fees=Fees(10, 100), began=0.0, sent=0.0, highest=150)
    assert next_action(pending, sight(), REPRICE_S, 3) == "reprice"
    assert next_action(pending.repriced(0.0), sight(), REPRICE_S, 3) == "wait"


def actions(views: list[TransactionView], confirmations: int) -> list[Action]:
    pending, found = SENT, list[Action]()
    for now, view in enumerate(views):
        pending = pending.seen(view)
        found.append(next_action(pending, view, float(now), confirmations))
    return found


def test_it_is_replaced_only_when_that_has_lasted() -> None:
    unknown = [sight(known=False, nonce=8, head=100 + n) for n in range(OVERTAKEN_POLLS)]
    assert actions(unknown, 3) == ["wait"] * (OVERTAKEN_POLLS - 1) + ["replaced"]
    # One backend of many that knows it is enough, however rarely it answers.
    some = [*unknown[:-1], sight(nonce=8), *unknown[:-1]]
    assert "replaced" not in actions(some, 3)
    # The block that used the number must stay, as ours would have to.
    same = [sight(known=False, nonce=8)] * OVERTAKEN_POLLS
    assert "replaced" not in actions(same * 3, 3)
    assert actions(same, 1)[-1] == "replaced"


def test_after_a_refusal_it_is_sent_again_ever_later_and_then_told() -> None:
    pending, unknown = Pending(nonce=7, fees=Fees(10, 100), began=0.0, sent=0.0), sight(known=False)
    now, tries = 0.0, list[float]()
    while (action := next_action(pending, unknown, now, 3)) != "refused":
        if action == "send again":
            tries.append(now)
            pending = pending.refused(now)
        now += 1.0
    assert len(tries) == MOST_REFUSALS
    waits = [after - before for before, after in pairwise(tries)]
    assert waits == sorted(waits) and waits[0] < waits[-1] <= 60
    assert now < GIVE_UP_S


# --- A node of which each answer is the test's.


class Node(BaseProvider):
    """Answers as a node does, but for what a test has it say."""

    def __init__(self) -> None:
        super().__init__()
        self.says: dict[str, Callable[[list[Any]], Any]] = {}
        self.now = 0.0
        self.sent: list[str] = []
        self.mined = True
        self.asked_block = ""

    def make_request(self, method: Any, params: Any) -> Any:
        answer = self.says[method](params) if method in self.says else getattr(self, method)(params)
        if isinstance(answer, dict) and "error" in answer:
            return {"jsonrpc": "2.0", "id": 1, "error": answer["error"]}
        return {"jsonrpc": "2.0", "id": 1, "result": answer}

    def eth_chainId(self, params: list[Any]) -> str:
        return hex(31337)

    def eth_getBalance(self, params: list[Any]) -> str:
        return hex(10**20)

    def eth_estimateGas(self, params: list[Any]) -> str:
        return hex(80_000)

    def eth_getTransactionCount(self, params: list[Any]) -> str:
        return hex(7 + (params[1] == "latest" and bool(self.sent) and self.mined))

    def eth_getBlockByNumber(self, params: list[Any]) -> dict[str, Any]:
        return {"number": hex(100), "timestamp": hex(1000), "baseFeePerGas": hex(10**9)}

    def eth_maxPriorityFeePerGas(self, params: list[Any]) -> str:
        return hex(10**9)

    def eth_blockNumber(self, params: list[Any]) -> str:
        return hex(101)

    def eth_sendRawTransaction(self, params: list[Any]) -> str:
        self.sent.append(params[0])
        return "0x" + "11" * 32

    def eth_getTransactionByHash(self, params: list[Any]) -> dict[str, Any] | None:
        return {"hash": params[0], "blockNumber": hex(101) if self.mined else None} if self.sent else None

    def eth_getTransactionReceipt(self, params: list[Any]) -> dict[str, Any]:
        return {"transactionHash": params[0], "blockNumber": hex(101), "status": hex(1)}

    def eth_call(self, params: list[Any]) -> str:
        self.asked_block = params[1]
        return "0x" + "".join(f"{n:064x}" for n in (5, 2, 0))

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def client(self, url: str = "http://127.0.0.1:9", **options: Any) -> ChainClient:
        addresses = {name: ChainAddress(bytes([n]) * 20) for n, name in enumerate(NAMES, 1)}
        given = {"confirmations": 1, "clock": lambda: self.now, "sleep": self.sleep, "poll_s": 5.0} | options
        return ChainClient(Deployment(url, 31337, addresses), self, **given)


def error_of(act: Callable[[], Any]) -> ChainError:
    with pytest.raises(ChainError) as told:
        act()
    return told.value


def error(message: str) -> dict[str, Any]:
    return {"error": {"code": -32005, "message": message}}


def html(params: list[Any]) -> Any:
    raise ValueError("Expecting value: line 1 column 1 (char 0)")


def away(params: list[Any]) -> Any:
    raise NoAnswer("cut")


def until(
    node: Node, time: float, bad: Callable[[list[Any]], Any], method: str
) -> Callable[[list[Any]], Any]:
    """The bad answer until so late, then a right one."""
    return lambda params: bad(params) if node.now < time else getattr(node, method)(params)


BAD = [html, away, lambda params: error("rate limit exceeded"), lambda params: {}, lambda params: "x"]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    "method", ["eth_getTransactionByHash", "eth_blockNumber", "eth_getTransactionReceipt"]
)
def test_a_bad_answer_after_it_was_sent_is_looked_past(method: str, bad: Callable[..., Any]) -> None:
    node = Node()
    node.says[method] = until(node, 900.0, bad, method)
    receipt = node.client().anchor(KEY, bytes(32), 1)
    assert receipt["status"] == 1
    assert len(node.sent) == 1
    assert node.now < 900.0 + 60


@pytest.mark.parametrize("bad", BAD[:3])
def test_bad_answers_without_end_leave_it_open_and_name_it(bad: Callable[..., Any]) -> None:
    node = Node()
    node.says["eth_blockNumber"] = bad
    told = error_of(lambda: node.client(poll_s=60.0).anchor(KEY, bytes(32), 1))
    assert told.reason == "dropped"
    assert "may still happen" in told.message
    assert any(len(word) == 64 for word in told.message.split())
    assert DOWN_S <= node.now < DOWN_S + 200


@pytest.mark.parametrize("bad", [html, away])
def test_it_may_have_been_taken_where_the_answer_to_sending_is_lost(bad: Callable[..., Any]) -> None:
    node = Node()
    node.mined = False

    def lost(params: list[Any]) -> Any:
        return bad(params) if node.now < 100 else error("temporarily refused")

    node.says["eth_sendRawTransaction"] = lost
    assert error_of(lambda: node.client().anchor(KEY, bytes(32), 1)).reason == "dropped"


def test_what_no_node_ever_took_is_refused_with_its_reason_and_not_sent_hundreds_of_times() -> None:
    node, tries = Node(), list[float]()

    def refuse(params: list[Any]) -> Any:
        tries.append(node.now)
        return error(f"transaction type not supported ({len(tries)})")

    node.says["eth_sendRawTransaction"] = refuse
    told = error_of(lambda: node.client().anchor(KEY, bytes(32), 1))
    assert told.reason == "refused"
    assert f"not supported ({MOST_REFUSALS})" in told.message
    assert len(tries) == MOST_REFUSALS


def test_a_transaction_whose_receipt_is_late_is_not_called_replaced() -> None:
    node = Node()
    node.says["eth_getTransactionReceipt"] = until(
        node, 30.0, lambda params: None, "eth_getTransactionReceipt"
    )
    assert node.client().anchor(KEY, bytes(32), 1)["status"] == 1


def test_a_backend_that_lags_does_not_have_it_called_replaced() -> None:
    node = Node()
    node.says["eth_getTransactionByHash"] = until(node, 12.0, lambda params: None, "eth_getTransactionByHash")
    assert node.client().anchor(KEY, bytes(32), 1)["status"] == 1


@pytest.mark.parametrize("method", ["eth_maxPriorityFeePerGas", "eth_estimateGas"])
def test_a_price_beyond_what_is_allowed_is_told_before_anything_is_sent(method: str) -> None:
    node = Node()
    node.says[method] = lambda params: hex(10**14)
    told = error_of(lambda: node.client().anchor(KEY, bytes(32), 1))
    assert (told.reason, node.sent) == ("dear", [])
    assert str(10**17) in told.message and "--most-cost" in told.check
    assert node.client(most_cost=10**30).anchor(KEY, bytes(32), 1)["status"] == 1 if "Fee" in method else True


def test_what_is_in_escrow_is_read_where_it_stays() -> None:
    node = Node()
    assert node.client(confirmations=3).escrow_state(bytes(32)).deposit == 5
    assert node.asked_block == hex(99)
    node.client(confirmations=1).escrow_state(bytes(32))
    assert node.asked_block == hex(101)


@pytest.mark.parametrize("bad", BAD[:3])
def test_a_node_that_looks_through_few_blocks_at_once_is_asked_often(bad: Callable[..., Any]) -> None:
    node, looked = Node(), list[range]()

    def logs(params: list[Any]) -> Any:
        first, last = (int(params[0][name], 16) for name in ("fromBlock", "toBlock"))
        if last - first >= 2000:
            return bad(params)
        looked.append(range(first, last + 1))
        return []

    node.says |= {"eth_getLogs": logs, "eth_blockNumber": lambda params: hex(20_000)}
    assert node.client().deposited(KEY.address, 5_000) == []
    assert [block for part in looked for block in part] == list(range(5_000, 20_001))
    node.says["eth_getLogs"] = bad
    assert error_of(lambda: node.client().deposited(KEY.address)).reason in ("nonsense", "down", "refused")


@pytest.mark.parametrize("answer", [{}, [], "x", 7, None, {"timestamp": "x"}, {"timestamp": None}])
def test_an_answer_that_is_none_is_told_as_nonsense(answer: Any) -> None:
    node = Node()
    assert node.client().now() == 1000
    node.says["eth_getBlockByNumber"] = lambda params: answer
    assert error_of(node.client().now).reason in ("nonsense", "refused")


def test_a_providers_key_in_the_address_is_not_shown() -> None:
    node = Node()
    node.says["eth_chainId"] = away
    told = error_of(lambda: node.client("https://me:word@example.org/v2/s3cret?key=s3cret").check())
    assert "at example.org does" in told.message
    assert "s3cret" not in told.message + told.check and "word" not in told.message
