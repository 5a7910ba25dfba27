"""Only the parts of py-libp2p that Shoal uses are loaded, and the library still has what we name of it."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.net.libp2p import parts as libp2p_parts
from shoal.net.libp2p.parts import BARE, LEFT_OUT

UNWANTED = (
    "aioquic",
    "coincurve",
    "dns",
    "fastecdsa",
    "grpc",
    "httpx",
    "miniupnpc",
    "requests",
    "sqlite3",
    "trio_websocket",
)
"""What the library imports for parts that Shoal never starts."""


def in_a_fresh_process(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_network_loads_nothing_that_it_does_not_use() -> None:
    loaded = set(in_a_fresh_process("import sys, shoal.net.host; print(*sys.modules)").split())
    assert "libp2p.network.swarm" in loaded
    assert not loaded & set(UNWANTED)


def test_whoever_calls_into_a_part_that_is_left_out_is_told() -> None:
    code = (
        "import shoal.net.host\n"
        "from libp2p.discovery.upnp.upnp import UpnpManager\n"
        "try: UpnpManager()\n"
        "except NotImplementedError as error: print(error)"
    )
    assert in_a_fresh_process(code).strip() == "libp2p.discovery.upnp.upnp.UpnpManager is left out of Shoal"


def test_a_name_is_resolved_by_the_librarys_own_resolver() -> None:
    code = (
        "import sys, trio, shoal.net.host\n"
        "from multiaddr import Multiaddr\n"
        "from multiaddr.resolvers import DNSResolver\n"
        "assert 'dns' not in sys.modules\n"
        "print(*trio.run(DNSResolver().resolve, Multiaddr('/ip4/127.0.0.1/tcp/1')))\n"
        "assert 'dns' in sys.modules"
    )
    assert in_a_fresh_process(code).strip() == "/ip4/127.0.0.1/tcp/1"


def test_a_key_of_a_kind_that_is_left_out_is_refused() -> None:
    code = (
        "import shoal.net.host\n"
        "from libp2p.crypto.pb.crypto_pb2 import KeyType, PublicKey\n"
        "from libp2p.crypto.serialization import deserialize_public_key\n"
        "key = PublicKey(key_type=KeyType.Secp256k1, data=bytes(33))\n"
        "try: deserialize_public_key(key.SerializeToString())\n"
        "except NotImplementedError as error: print(error)"
    )
    assert (
        in_a_fresh_process(code).strip() == "libp2p.crypto.secp256k1.Secp256k1PublicKey is left out of Shoal"
    )


def test_the_library_is_the_one_that_shoal_was_built_with(tmp_path: Path) -> None:
    (tmp_path / "libp2p").mkdir()
    (tmp_path / "libp2p/__init__.py").write_text("raise RuntimeError('another libp2p')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import shoal.net, libp2p.peer.id\n"
        "print(libp2p.peer.id.__file__)"
    )
    assert Path(in_a_fresh_process(code).strip()).is_relative_to(libp2p_parts.VENDORED)


def test_the_library_finds_its_version_and_says_nothing() -> None:
    code = (
        "import sys, shoal.net.host\n"
        "from libp2p.utils.version import get_agent_version\n"
        "print(get_agent_version())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == f"py-libp2p/{importlib.metadata.version('libp2p')}"
    assert done.stderr == ""


def test_choosing_twice_changes_nothing() -> None:
    before = list(sys.meta_path)
    libp2p_parts.choose()
    assert sys.meta_path == before


@pytest.mark.parametrize("name", sorted(BARE | LEFT_OUT))
def test_the_library_has_every_module_that_is_named(name: str) -> None:
    file = _file(name)
    assert file.is_file(), f"libp2p has no {name} any more"


@pytest.mark.parametrize("name", sorted(BARE - {"multiaddr.resolvers"}))
def test_what_is_not_run_of_a_package_only_gathers_names(name: str) -> None:
    """Otherwise leaving it out would leave out what it does."""
    for statement in ast.parse(_file(name).read_text()).body:
        gathers = isinstance(
            statement, (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.Expr, ast.If, ast.Try)
        )
        defines = name == "libp2p" and isinstance(
            statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        )
        assert gathers or defines, f"{name} now has a {type(statement).__name__} at line {statement.lineno}"


def _file(name: str) -> Path:
    """Where a module lies, found without importing anything."""
    top, _, rest = name.partition(".")
    spec = importlib.util.find_spec(top)
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(next(iter(spec.submodule_search_locations)), *rest.split(".") if rest else ())
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
