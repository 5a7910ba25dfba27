"""Without the extra ``ledger`` all else works: nothing imports it before it is used, and then it is named."""

from __future__ import annotations

import subprocess
import sys
import tempfile

WITHOUT = """
import importlib, pkgutil, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("coincurve", "web3", "eth_account", "eth_keyfile", "eth_utils"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""
FACES = """
import shoal.cli.main, shoal.node.node, shoal.client.swarm, shoal.client.connect, shoal.gateway.app
import shoal.cli.ledger.credits, shoal.node.paying.credit_desk, shoal.client.paying.acknowledging
"""


CHAIN = 'url = "http://127.0.0.1:9"\nchain_id = 31337\n' + "".join(
    f'{name} = "0x{"11" * 20}"\n' for name in ("escrow", "registry", "anchor")
)


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_node_a_client_and_a_gateway_import_nothing_that_needs_the_extra() -> None:
    said = run(FACES + "\nprint(*(name for name in sys.modules if name.startswith('shoal.ledger')))")
    assert not {name for name in said.split() if not name.startswith("shoal.ledger.credits")} - {
        "shoal.ledger"
    }


def test_who_pays_and_who_is_paid_is_imported_only_where_a_price_or_a_budget_is_set() -> None:
    said = run(FACES + "\nprint(*sys.modules)").split()
    assert {"shoal.node.paying.payment", "shoal.client.paying.accounts"} <= set(said)
    needing = {f"shoal.node.paying.{name}" for name in ("payee_desk", "redeemer", "start")}
    needing |= {f"shoal.client.paying.{name}" for name in ("voucher_payer", "start")}
    assert not needing & set(said)


def test_a_node_with_a_price_and_a_client_with_a_budget_are_told_how_to_get_it() -> None:
    program = """
import pathlib, tempfile
from shoal import config
from shoal.errors import IncompatibleLibrary
from shoal.client.paying.start import wallet_payer
from shoal.node.paying.start import payee_desk
home = pathlib.Path(tempfile.mkdtemp())
(home / "wallet.json").touch(mode=0o600)
(home / "wallet.json").write_text(
    '{"version": 3, "crypto": {"kdfparams": {}}, "address": "' + "11" * 20 + '"}'
)
(home / "password").write_text("long enough")
given = {"price": "1", "pay_budget": "1", "pay_password_file": str(home / "password")}
settings = config.load(given, {"SHOAL_HOME": str(home)})
(home / "chain.toml").write_text(CHAIN)
for start, given in ((wallet_payer, ("client",)), (payee_desk, ("node",))):
    try:
        start(*given, settings)
    except IncompatibleLibrary as error:
        print(error.next_command)
"""
    told = run(f"CHAIN = {CHAIN!r}\n" + program).splitlines()
    assert told == ["pip install 'shoal[ledger]'"] * 2


def test_every_part_of_the_ledger_can_be_imported_without_it() -> None:
    program = """
import shoal.ledger
for module in pkgutil.walk_packages(shoal.ledger.__path__, "shoal.ledger."):
    importlib.import_module(module.name)
    print(module.name)
"""
    assert "shoal.ledger.vouchers.keys" in run(program).split()


def test_who_needs_it_is_told_how_to_get_it() -> None:
    program = """
from shoal.errors import IncompatibleLibrary
from shoal.ledger.vouchers.keys import ChainKey
try:
    ChainKey.generate()
except IncompatibleLibrary as error:
    print(error.next_command)
"""
    assert run(program) == "pip install 'shoal[ledger]'\n"


def test_its_libraries_leave_the_limit_of_recursion_alone() -> None:
    """With the limit that they set, a few thousand brackets in a request would end a process."""
    program = """
import sys
from pathlib import Path
from shoal.ledger.chain.rpc import connect
from shoal.ledger.wallet import create_wallet
before = sys.getrecursionlimit()
connect("http://127.0.0.1:9")
create_wallet(Path(sys.argv[1]), "long enough", rounds=2)
print(sys.getrecursionlimit() == before, "py_ecc" in sys.modules)
"""
    command = [sys.executable, "-c", program]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*command, f"{folder}/wallet.json"], capture_output=True, text=True, timeout=120, check=False
        )
    assert (done.stdout, done.returncode) == ("True True\n", 0), done.stderr
