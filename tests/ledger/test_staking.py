"""A node that has staked counter-signs its receipts, and loses the stake to whoever shows that it lied."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shoal.errors import BadLedgerFile, NotAllowed, UsageError
from shoal.ledger import wallet as module
from shoal.ledger.chain import client as chain_client
from shoal.ledger.contracts.evidence import countersign, registry_domain
from shoal.ledger.delegate import Delegate, countersigner, delegate_file, read_delegate, write_delegate
from shoal.ledger.vouchers.keys import ChainKey
from shoal.ledger.vouchers.typed_data import show_address
from shoal.net.identity import Identity
from shoal.trust.answer import HopReceipts, KeptAnswer, KeptWindow
from shoal.trust.receipt import Receipt, sign_windows
from shoal.trust.rows import RowLog
from tests.cli.conftest import Shoal, home, shoal
from tests.ledger.engines import Engine

ETHER = 10**18
STAKE = ETHER // 20
TOKENS = 40
WEEK_S = 7 * 86400
__all__ = ["home", "shoal"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = dict(chain_client.ChainClient.__init__.__kwdefaults__ or {})
    monkeypatch.setattr(module.create_wallet, "__kwdefaults__", {"rounds": 2})
    quick = kept | {"poll_s": 0.01, "confirmations": 1}
    monkeypatch.setattr(chain_client.ChainClient.__init__, "__kwdefaults__", quick)


def rows(seed: int) -> RowLog:
    log = RowLog()
    log.note(0, TOKENS, bytes([seed]) * 32 * TOKENS)
    return log


def answer(signer: Identity, went: int, counter: Callable[[Receipt], bytes]) -> KeptAnswer:
    """An answer of one hop, to one question of one session; what it says that it computed is ``went``."""
    empty = KeptAnswer(
        model="fish",
        digest="sha256:" + "a" * 64,
        n_blocks=2,
        width=64,
        numerics="n1/int8/auto/rows",
        codec="float32",
        session=b"s" * 16,
        nonce=b"n" * 16,
        token_ids=tuple(range(TOKENS)),
        prompt_tokens=30,
        tokens=TOKENS,
        hops=(HopReceipts(signer.peer, 0, 2, b"o" * 16, ()),),
    )
    signed = sign_windows(empty.work(0), TOKENS, rows(1), rows(went), signer.sign, counter)
    hop = msgspec.structs.replace(empty.hops[0], receipts=tuple(map(KeptWindow.of, signed)))
    return msgspec.structs.replace(empty, hops=(hop,))


class Staker:
    """This machine: its wallet, its node, and files of two answers."""

    def __init__(self, shoal: Shoal, home: Path, tmp_path: Path, engine: Engine) -> None:
        self.shoal, self.home, self.folder, self.engine = shoal, home, tmp_path, engine
        password = tmp_path / "password"
        password.write_text("correct horse\n")
        self.asked = ("--password-file", str(password), "--json")
        self.address = shoal("wallet", "create", *self.asked).data["address"]
        engine.give(self.address, 5 * ETHER)
        url = str(engine.w3.provider.endpoint_uri)
        assert shoal("wallet", "deploy", "--url", url, "--chain-id", "31337", *self.asked).code == 0

    def verify(self, one: KeptAnswer, other: KeptAnswer) -> Any:
        files = [self.folder / name for name in ("one.json", "other.json")]
        for file, kept in zip(files, (one, other), strict=True):
            file.write_bytes(kept.encoded())
        return self.shoal("verify", "--evidence", "--slash", *map(str, files), *self.asked)


@pytest.fixture
def staker(shoal: Shoal, home: Path, tmp_path: Path, anvil_engine: Engine) -> Staker:
    return Staker(shoal, home, tmp_path, anvil_engine)


def test_a_lying_hop_loses_its_stake_and_a_forged_accusation_fails(staker: Staker) -> None:
    staked = staker.shoal("wallet", "stake", "0.05", *staker.asked).data
    assert staked["stake_wei"] == str(STAKE)
    node = Identity.load(staker.home / "identity.key")
    assert staked["peer"] == node.peer
    honest = countersigner(staker.home)
    delegate = read_delegate(delegate_file(staker.home))
    assert delegate is not None

    other = ChainKey.from_secret(b"\x61" * 32)
    elsewhere = registry_domain(1337, delegate.registry)
    key = ChainKey.from_secret(delegate.secret)
    forgeries: list[tuple[Callable[[Receipt], bytes], str]] = [
        (lambda receipt: countersign(other, delegate.domain, receipt), "not counter-signed by one delegate"),
        (lambda receipt: countersign(key, elsewhere, receipt), "not counter-signed by one delegate"),
        (lambda receipt: b"", "had no stake to lose"),
        (lambda receipt: b"\x01" * 65, "not counter-signed by one delegate"),
    ]
    for forged, told in forgeries:
        ran = staker.verify(answer(node, 2, honest), answer(node, 3, forged))
        assert (ran.code, told in ran.out) == (2, True), ran.out
    stranger = staker.verify(
        *(answer(node, went, lambda receipt: countersign(other, delegate.domain, receipt)) for went in (2, 3))
    )
    assert "has no stake in this registry" in stranger.out
    same = staker.verify(answer(node, 2, honest), answer(node, 2, honest))
    assert "nothing was sent to the chain" in same.out
    assert staker.shoal("wallet", "stake", "0.01", *staker.asked).data["stake_wei"] == str(
        STAKE + ETHER // 100
    )

    before = staker.engine.w3.eth.get_balance(staker.address)
    ran = staker.verify(answer(node, 2, honest), answer(node, 3, honest))
    assert ran.code == 1
    assert ran.data["slashed"]["delegate"] == staked["delegate"] == show_address(key.address)
    assert ran.data["slashed"]["stake_wei"] == str(STAKE + ETHER // 100)
    assert any("its stake of 0.06 is lost" in said for said in ran.data["said"])
    gained = staker.engine.w3.eth.get_balance(staker.address) - before
    assert 0.9 * (STAKE // 2) < gained < 0.6 * (STAKE + ETHER // 100)
    again = staker.verify(answer(node, 2, honest), answer(node, 3, honest))
    assert "has no stake in this registry" in again.out


def test_a_stake_goes_back_to_the_wallet_a_week_after_it_asked(staker: Staker) -> None:
    assert "has not staked" in staker.shoal("wallet", "unstake", *staker.asked).out
    assert "at least" in staker.shoal("wallet", "stake", "0.001", *staker.asked).out
    staker.shoal("wallet", "stake", "0.05", *staker.asked)
    unstake = ("wallet", "unstake", *staker.asked)
    assert [staker.shoal(*unstake).data["done"] for _ in range(2)] == ["asked for", "waiting"]
    staker.engine.pass_time(WEEK_S)
    before = staker.engine.w3.eth.get_balance(staker.address)
    assert staker.shoal(*unstake).data["done"] == "taken back"
    assert staker.engine.w3.eth.get_balance(staker.address) > before
    assert "no stake any more" in staker.shoal(*unstake).out


def test_a_delegate_is_kept_for_its_owner_alone_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    path = delegate_file(tmp_path)
    delegate = Delegate(b"\x11" * 32, 31337, b"\x22" * 20)
    write_delegate(path, delegate)
    assert read_delegate(path) == delegate
    assert "11" not in repr(delegate)
    with pytest.raises(UsageError, match="already"):
        write_delegate(path, delegate)
    path.chmod(0o644)
    with pytest.raises(NotAllowed, match="others"):
        read_delegate(path)
    path.chmod(0o600)
    path.write_bytes(b"{}")
    with pytest.raises(BadLedgerFile, match="damaged"):
        countersigner(tmp_path)
