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
FACES = "import shoal.cli.main, shoal.node.node, shoal.client.swarm, shoal.gateway.app"


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
