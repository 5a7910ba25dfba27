"""`shoal wallet`: a key under a password, and payment channels from opening to end on a real node."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from eth_account import Account

from shoal import config
from shoal.errors import BadLedgerFile, NotAllowed, OutOfResources, UsageError
from shoal.ledger import wallet as module
from shoal.ledger.chain import client as chain_client
from shoal.ledger.settling import PaymentBooks
from shoal.ledger.vouchers.payee import PayeeAccount
from shoal.ledger.vouchers.payer import PayerAccount
from shoal.ledger.vouchers.redeeming import note_failed
from shoal.ledger.vouchers.typed_data import parse_address, show_address
from shoal.ledger.vouchers.voucher import PaymentTerms, escrow_domain, sign_voucher
from shoal.ledger.wallet import MAX_FILE, create_wallet, open_wallet, read_password, wallet_address
from shoal.net.identity import Identity
from shoal.node.paying.start import payee_desk
from shoal.option_values import parse_coins, show_coins
from tests.cli.conftest import Shoal, home, shoal
from tests.ledger.engines import Engine, anvil

PASSWORD = "correct horse"
SERVED = ("--peer", Identity.from_seed(b"\x61" * 32).peer)
"""The node that is paid."""
ETHER = 10**18
__all__ = ["home", "shoal"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key file that takes no second, and a node that is asked often."""
    monkeypatch.setattr(module.create_wallet, "__kwdefaults__", {"rounds": 2})
    monkeypatch.setattr(chain_client.ChainClient.__init__, "__kwdefaults__", KEYWORDS | {"poll_s": 0.01})


KEYWORDS: dict[str, Any] = dict(chain_client.ChainClient.__init__.__kwdefaults__ or {}) | {"confirmations": 1}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    create_wallet(tmp_path / "wallet.json", PASSWORD)
    return tmp_path / "wallet.json"


def test_a_key_comes_back_by_its_password_here_and_in_another_wallet(key_file: Path) -> None:
    key = open_wallet(key_file, PASSWORD)
    assert key.address == wallet_address(key_file)
    assert Account.decrypt(json.loads(key_file.read_text()), PASSWORD) == key.secret
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert key.secret.hex() not in key_file.read_text()


def test_a_wrong_password_a_short_one_and_a_second_wallet_are_refused(key_file: Path, tmp_path: Path) -> None:
    with pytest.raises(NotAllowed, match="password"):
        open_wallet(key_file, PASSWORD + "!")
    with pytest.raises(UsageError, match="fewer"):
        create_wallet(tmp_path / "other.json", "short")
    before = key_file.read_bytes()
    with pytest.raises(UsageError, match="already"):
        create_wallet(key_file, PASSWORD)
    assert key_file.read_bytes() == before


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_when_the_disk_fails_there_is_no_half_wallet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OutOfResources, match="No space left"):
        create_wallet(tmp_path / "wallet.json", PASSWORD)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    create_wallet(tmp_path / "wallet.json", PASSWORD, rounds=2)
    assert [path.name for path in tmp_path.iterdir()] == ["wallet.json"]


def test_a_file_that_others_may_read_is_refused(key_file: Path) -> None:
    key_file.chmod(0o644)
    with pytest.raises(NotAllowed, match="others"):
        open_wallet(key_file, PASSWORD)


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: kept | {"version": 1},
        lambda kept: kept | {"crypto": 7},
        lambda kept: kept | {"crypto": {}},
        lambda kept: kept | {"address": "00" * 20},
        lambda kept: kept | {"address": "zz"},
        lambda kept: kept | {"crypto": kept["crypto"] | {"kdfparams": {"n": 1 << 30}}},
        lambda kept: kept | {"crypto": kept["crypto"] | {"kdfparams": {"n": 2, "r": 1 << 30}}},
        lambda kept: kept | {"crypto": kept["crypto"] | {"kdfparams": {"n": 2, "p": 17}}},
        lambda kept: kept | {"crypto": kept["crypto"] | {"kdfparams": {"c": 1 << 40}}},
        lambda kept: kept | {"crypto": kept["crypto"] | {"kdfparams": {"n": "x"}}},
        lambda kept: kept | {"crypto": kept["crypto"] | {"kdf": "none"}},
        lambda kept: [kept],
        lambda kept: "x" * (1 << 17),
    ],
)
def test_a_damaged_key_file_is_told(key_file: Path, change: Any) -> None:
    key_file.write_text(json.dumps(change(json.loads(key_file.read_text()))))
    with pytest.raises(BadLedgerFile) as told:
        open_wallet(key_file, PASSWORD)
    assert "copy" in told.value.check


# --- The commands.


@pytest.fixture(scope="module")
def node() -> Iterator[Engine]:
    with anvil() as engine:
        yield engine


@pytest.fixture
def password(tmp_path: Path) -> str:
    (tmp_path / "password").write_text(PASSWORD + "\n")
    return str(tmp_path / "password")


@pytest.fixture
def rich(shoal: Shoal, node: Engine, password: str) -> dict[str, Any]:
    """A wallet with a hundred coins, and a chain that is set up."""
    made = shoal("wallet", "create", "--password-file", password, "--json").data
    node.give(made["address"])
    url = str(node.w3.provider.endpoint_uri)
    ran = shoal(
        "wallet", "deploy", "--url", url, "--chain-id", "31337", "--password-file", password, "--json"
    )
    assert ran.code == 0, ran.err
    return made


def test_without_a_wallet_or_a_chain_the_next_command_is_named(shoal: Shoal, password: str) -> None:
    assert "shoal wallet create" in shoal("wallet", "show").err
    shoal("wallet", "create", "--password-file", password)
    ran = shoal("wallet", "fund", *SERVED, "0x" + "11" * 20, "1", "--password-file", password)
    assert "shoal wallet deploy" in ran.err
    assert "no payment channels" in shoal("wallet", "channels").out
    assert shoal("wallet", "deploy", "--url", "http://x", "--chain-id", "1").code == 2


def test_a_wallet_is_shown_with_what_it_has_and_without_its_key(
    shoal: Shoal, rich: dict[str, Any], home: Path, password: str
) -> None:
    shown = shoal("wallet", "show", "--json").data
    assert (shown["address"], shown["chain_id"]) == (rich["address"], 31337)
    assert about(shown, 100)
    text = shoal("wallet", "show").out
    assert "balance  99.99" in text
    secret = open_wallet(home / "wallet.json", PASSWORD).secret.hex()
    again = shoal("wallet", "create", "--password-file", password)
    assert again.code == 2
    assert secret not in text + again.out + again.err + json.dumps(shown)


def test_a_channel_is_opened_added_to_and_closed(
    shoal: Shoal, rich: dict[str, Any], node: Engine, password: str
) -> None:
    payee = node.w3.eth.accounts[5]
    asked = ("--password-file", password, "--json")
    opened = shoal("wallet", "fund", *SERVED, payee, "1.5", *asked).data
    more = shoal("wallet", "fund", *SERVED, payee, "0.5", *asked).data
    assert more == {"channel": opened["channel"], "deposit_wei": str(2 * ETHER)}
    (row,) = shoal("wallet", "channels", "--json").data["channels"]
    assert (row["role"], row["other"], row["deposit_wei"]) == ("pays", payee, str(2 * ETHER))
    assert opened["channel"][:16] in shoal("wallet", "channels").out
    name = opened["channel"][:12]
    assert shoal("wallet", "withdraw", name, *asked).data["done"] == "close requested"
    assert shoal("wallet", "withdraw", name, *asked).data["done"] == "waiting"
    # A chain of one's own makes no block while nothing happens: no block says that the day is over.
    node.rpc("evm_increaseTime", 86_400)
    assert shoal("wallet", "withdraw", name, *asked).data["done"] == "taken back"
    assert "nothing is left" in shoal("wallet", "withdraw", name, *asked).err + str(
        shoal("wallet", "withdraw", name, *asked).out
    )
    assert about(shoal("wallet", "show", "--json").data, 100)


def test_a_channel_that_is_closing_is_not_added_to_but_another_opened(
    shoal: Shoal, rich: dict[str, Any], node: Engine, password: str
) -> None:
    asked = ("--password-file", password, "--json")
    first = shoal("wallet", "fund", *SERVED, node.w3.eth.accounts[5], "1", *asked).data["channel"]
    shoal("wallet", "withdraw", first, *asked)
    assert shoal("wallet", "fund", *SERVED, node.w3.eth.accounts[5], "1", *asked).data["channel"] != first


def test_what_is_in_escrow_comes_back_without_the_folder_of_payments(
    shoal: Shoal, rich: dict[str, Any], node: Engine, home: Path, password: str
) -> None:
    asked = ("--password-file", password, "--json")
    payees = node.w3.eth.accounts[5:8]
    first, second, third = (
        shoal("wallet", "fund", *SERVED, payee, "1", *asked).data["channel"] for payee in payees
    )
    shoal("wallet", "fund", *SERVED, payees[0], "2", *asked)
    # A stranger can fill a machine's folder with channels that are said to be this wallet's: not with these.
    wallet = parse_address(rich["address"])
    strange = PaymentTerms(payer=wallet, payer_signer=wallet, payee=b"\6" * 20, payee_signer=b"\6" * 20)
    client = chain_client.ChainClient(
        chain_client.Deployment(str(node.w3.provider.endpoint_uri), 31337, contracts_of(home))
    )
    node.send(client.contract("Escrow").functions.deposit(chain_client._tuple(strange)), node.rich, 1)
    shutil.rmtree(home / "payments")
    assert "shoal wallet recover" in shoal("wallet", "withdraw", first, "--password-file", password).err
    assert sorted(shoal("wallet", "recover", "--json").data["channels"]) == sorted([first, second, third])
    assert shoal("wallet", "recover", "--json").data["channels"] == []
    rows = {row["channel"]: row for row in shoal("wallet", "channels", "--json").data["channels"]}
    assert (rows[first]["deposit_wei"], rows[first]["other"]) == (str(3 * ETHER), payees[0])
    assert shoal("wallet", "fund", *SERVED, payees[1], "1", *asked).data["channel"] == second
    assert shoal("wallet", "withdraw", third, *asked).data["done"] == "close requested"
    node.rpc("evm_increaseTime", 86_400)
    assert shoal("wallet", "withdraw", third, *asked).data["done"] == "taken back"
    shutil.rmtree(home / "payments")
    assert sorted(shoal("wallet", "recover", "--json").data["channels"]) == sorted([first, second])


def paid_by_a_stranger(rich: dict[str, Any], node: Engine, home: Path) -> str:
    """A payment channel over which this wallet was paid a coin of two, as by a payer of another home."""
    payer = module.ChainKey.from_secret(b"\x31" * 32)
    node.give(show_address(payer.address))
    client = chain_client.ChainClient(
        chain_client.Deployment(str(node.w3.provider.endpoint_uri), 31337, contracts_of(home))
    )
    terms = msgspec.structs.replace(module_terms(payer, rich["address"]), salt=os.urandom(32))
    client.deposit(payer, terms, 2 * ETHER)
    channel_id = terms.channel_id(client.deployment.escrow)
    voucher = sign_voucher(payer, client.deployment.escrow, channel_id, ETHER)
    PaymentBooks.below(home / "payments").paid.add(
        PayeeAccount(
            terms=terms,
            domain=client.deployment.escrow,
            channel_id=channel_id,
            deposit=2 * ETHER,
            window=ETHER,
            voucher=voucher,
        )
    )
    return channel_id.hex()


def test_what_vouchers_gave_is_taken_out_once(
    shoal: Shoal, rich: dict[str, Any], node: Engine, home: Path, password: str
) -> None:
    asked = ("--password-file", password, "--json")
    name = paid_by_a_stranger(rich, node, home)
    assert shoal("wallet", "withdraw", name, *asked).data["done"] == "redeemed"
    (row,) = shoal("wallet", "channels", "--json").data["channels"]
    assert (row["role"], row["redeemed_wei"]) == ("paid by", str(ETHER))
    assert about(shoal("wallet", "show", "--json").data, 101)
    assert shoal("wallet", "withdraw", name, *asked).code == 2


def test_a_node_that_may_open_its_wallet_redeems_by_itself_and_it_is_listed(
    shoal: Shoal, rich: dict[str, Any], node: Engine, home: Path, password: str
) -> None:
    channel = paid_by_a_stranger(rich, node, home)
    (row,) = shoal("wallet", "channels", "--json").data["channels"]
    assert (row["to_redeem_wei"], row["closes_at"], row["redeem_failed"]) == (str(ETHER), None, None)
    books = PaymentBooks.below(home / "payments")

    async def serve() -> None:
        """A node's life, as far as it is paid, until it has redeemed."""
        desk = payee_desk(
            Identity.ephemeral().peer, config.load({"price": "1", "pay_password_file": password})
        )
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                await nursery.start(desk.run)
                while not books.paid.read(bytes.fromhex(channel)).redeemed:  # noqa: ASYNC110
                    await trio.sleep(0.02)
                nursery.cancel_scope.cancel()

    trio.run(serve)
    (row,) = shoal("wallet", "channels", "--json").data["channels"]
    assert (row["redeemed_wei"], row["to_redeem_wei"]) == (str(ETHER), "0")
    assert about(shoal("wallet", "show", "--json").data, 101)


def test_what_could_not_be_redeemed_is_listed_with_why_and_when_it_is_tried_again(
    shoal: Shoal, rich: dict[str, Any], node: Engine, home: Path
) -> None:
    channel_id = bytes.fromhex(paid_by_a_stranger(rich, node, home))
    book = PaymentBooks.below(home / "payments").paid
    book.change(channel_id, lambda kept: note_failed(kept, "the node is away", 1_000.0))
    closing = msgspec.structs.replace(book.read(channel_id), closes_at=2_000_000_000.0)
    book.change(channel_id, lambda _: closing)
    (row,) = shoal("wallet", "channels", "--json").data["channels"]
    assert row["redeem_failed"] == {"times": 1, "why": "the node is away", "again_at": 1_060.0}
    shown = " ".join(shoal("wallet", "channels").out.split())
    for part in ("until 2033-05-1", "tried", "once in vain", "away"):
        assert part in shown, shown


def test_a_damaged_file_of_a_channel_is_told_beside_the_others(shoal: Shoal, home: Path) -> None:
    accounts = [kept_account(bytes([n]) * 20) for n in (7, 8)]
    books = PaymentBooks.below(home / "payments")
    for account in accounts:
        books.paying.add(account)
    path = home / "payments/paying" / f"{accounts[0].channel_id.hex()}.account"
    path.write_bytes(path.read_bytes()[:-9])
    (path.parent / "stray.account").write_bytes(b"x")
    ran = shoal("wallet", "channels", "--json")
    rows = {row["channel"]: row for row in ran.data["channels"]}
    assert (ran.code, len(rows)) == (1, 2)
    assert str(path) in rows[path.stem]["damaged"] and str(path) in ran.err
    whole = rows[accounts[1].channel_id.hex()]
    assert (whole["other"], whole["deposit_wei"]) == (show_address(bytes([8]) * 20), str(ETHER))
    assert (whole["chain_id"], whole["contract"]) == (31337, show_address(bytes([9]) * 20))
    shown = shoal("wallet", "channels").out
    assert "damaged" in shown and show_address(bytes([9]) * 20) in shown


def kept_account(payee: bytes, **changes: Any) -> PayerAccount:
    terms = module_terms(module.ChainKey.from_secret(b"\x31" * 32), show_address(payee))
    domain = escrow_domain(31337, bytes([9]) * 20)
    given = {"deposit": ETHER, "budget": ETHER} | changes
    return PayerAccount(terms=terms, domain=domain, channel_id=terms.channel_id(domain), **given)


def test_what_is_on_the_way_is_listed_where_no_chain_can_be_asked(shoal: Shoal, home: Path) -> None:
    PaymentBooks.below(home / "payments").paying.add(kept_account(bytes([7]) * 20, on_the_way=ETHER // 2))
    ran = shoal("wallet", "channels", "--json")
    (row,) = ran.data["channels"]
    assert (row["deposit_wei"], row["on_the_way_wei"]) == (str(ETHER), str(ETHER // 2))
    assert "0.5 on the way" in ran.err
    assert "1 (and 0.5 on the way)" in shoal("wallet", "channels").out


def test_who_creates_a_wallet_is_told_to_keep_the_payments_too(
    shoal: Shoal, home: Path, password: str
) -> None:
    ran = shoal("wallet", "create", "--password-file", password)
    assert str(home / "wallet.json") in ran.err
    assert str(home / "payments") in ran.err


NO_AMOUNTS = ["0", "-1", "x", "nan", "inf", "0.0000000000000000001", "1e40", "9e999999", "1e-999999"]
NO_AMOUNTS += ["12345678901.2345678901234567891", "1" * 65, "sNaN"]


@pytest.mark.parametrize("amount", NO_AMOUNTS)
def test_what_is_no_amount_is_refused(shoal: Shoal, amount: str) -> None:
    ran = shoal("wallet", "fund", *SERVED, "--", "0x" + "11" * 20, amount)
    assert ran.code == 2
    assert "amount" in ran.err


def test_an_amount_is_taken_to_its_last_digit() -> None:
    assert parse_coins("12345678901234.567890123456789012") == 12345678901234567890123456789012
    assert show_coins(12345678901234567890123456789012) == "12345678901234.567890123456789012"
    assert parse_coins("5e-2") == ETHER // 20


def test_what_a_transaction_may_cost_can_be_set(
    shoal: Shoal, rich: dict[str, Any], node: Engine, password: str
) -> None:
    asked = ("--password-file", password, "--json")
    payee = node.w3.eth.accounts[5]
    told = shoal("wallet", "fund", *SERVED, payee, "1", "--most-cost", "0.000000000000000001", *asked).data[
        "error"
    ]
    assert "--most-cost" in told["check"]
    (row,) = shoal("wallet", "channels", "--json").data["channels"]
    assert (row["deposit_wei"], row["on_the_way_wei"]) == ("0", "0")
    assert shoal("wallet", "fund", *SERVED, payee, "1", *asked).data["channel"] == row["channel"]


def about(shown: dict[str, Any], coins: int) -> bool:
    """Whether a wallet has so many coins, less what its transactions cost."""
    return 0 <= coins * ETHER - int(shown["balance_wei"]) < ETHER // 100


def contracts_of(home: Path) -> Any:
    from shoal.ledger.chain.deployment import read_deployment

    return read_deployment(home / "chain.toml").contracts


def module_terms(payer: Any, payee: str) -> Any:
    to = parse_address(payee)
    return PaymentTerms(payer=payer.address, payer_signer=payer.address, payee=to, payee_signer=to)


def test_a_file_with_a_password_is_read_whole_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "word"
    file.write_text("a word of mine\n")
    assert read_password(file) == "a word of mine"
    file.write_bytes(b"a" * (MAX_FILE + 1))
    with pytest.raises(UsageError, match="more than"):
        read_password(file)
