"""Settings: which of flag, environment, file and default wins, and what a wrong value says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal import config, option_values, process_environ
from shoal.config import OPTIONS, Settings, load
from shoal.config_file import default_paths
from shoal.errors import UsageError
from shoal.option_values import parse_size


def written(home: Path, text: str) -> dict[str, str]:
    (home / "config.toml").write_text(text, "utf-8")
    return {"SHOAL_HOME": str(home)}


def test_without_anything_every_option_has_its_default(tmp_path: Path) -> None:
    found = load(environ={"SHOAL_HOME": str(tmp_path / "nowhere")})
    assert found.swarm == "home"
    assert found.format == "auto"
    assert found.public is False


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    environ = written(tmp_path, "port = 1\nthreads = 1\nmax_sessions = 1\n")
    environ |= {"SHOAL_PORT": "2", "SHOAL_THREADS": "2"}
    found = load({"port": 3}, environ)
    assert (found.port, found.threads, found.max_sessions, found.direct_port) == (3, 2, 1, 0)


def test_a_flag_that_was_not_given_changes_nothing_but_zero_and_false_do(tmp_path: Path) -> None:
    environ = written(tmp_path, "port = 4001\nmdns = true\n")
    assert load({"port": None}, environ).port == 4001
    found = load({"port": 0, "mdns": False}, environ)
    assert (found.port, found.mdns) == (0, False)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_can_be_set_by_the_environment(option: str, tmp_path: Path) -> None:
    samples: dict[str, tuple[str, Any]] = {
        "public": ("yes", True),
        "direct": ("off", False),
        "mdns": ("0", False),
        "relay": ("off", False),
        "port_map": ("off", False),
        "iroh": ("on", True),
        "iroh_relay": ("https://a.org http://1.2.3.4:3340", ("https://a.org", "http://1.2.3.4:3340")),
        "attest": ("on", True),
        "attested_only": ("yes", True),
        "fast": ("1", True),
        "memory": ("4GiB", 4 << 30),
        "bootstrap": ("/a /b,/c", ("/a", "/b", "/c")),
        "public_address": ("20.0.9.9 [2a10::9]:4002", ("20.0.9.9", "[2a10::9]:4002")),
        "gateway_origins": ("https://a.org", ("https://a.org",)),
        "format": ("bf16", "bf16"),
        "kv": ("int8", "int8"),
        "wire": ("bfloat16", "bfloat16"),
        "speculate": ("off", "off"),
        "database": ("postgresql://db/shoal", "postgresql://db/shoal"),
        "draft": ("SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct"),
        "objective": ("throughput", "throughput"),
        "protect": ("audited", "audited"),
        "pin": ("one,two", ("one", "two")),
        "only": ("one two", ("one", "two")),
        "private_ends": ("2:1", "2:1"),
        "device": ("cuda:1", "cuda:1"),
        "kernels": ("torch", "torch"),
        "yield_to_owner": ("pause", "pause"),
        "share": ("off", "off"),
        "train": ("on", True),
        "adapter": ("a,b=c", ("a", "b=c")),
        "soft_prompt": ("a,b=c", ("a", "b=c")),
        "share_rate": ("20MB", 20_000_000),
        "credits": ("on", True),
        "log_level": ("debug", "debug"),
        "log_format": ("json", "json"),
        "announce_s": ("2.5", 2.5),
        "expiry_s": ("45", 45.0),
        "canaries": ("0.5", 0.5),
    }
    text, value = samples.get(option, ("7", 7))
    kind = type(getattr(Settings(), option))
    found = load(environ={"SHOAL_HOME": str(tmp_path), f"SHOAL_{option.upper()}": text})
    assert getattr(found, option) == kind(value)
    assert type(getattr(found, option)) is kind


@pytest.mark.parametrize(
    ("name", "value", "needs"),
    [
        ("port", "many", "a whole number"),
        ("port", 1.5, "a whole number"),
        ("port", True, "a whole number"),
        ("port", 65536, "between 0 and 65535"),
        ("port", -1, "between 0 and 65535"),
        ("announce_s", "nan", "between"),
        ("announce_s", "inf", "between"),
        ("mdns", "perhaps", "true or false"),
        ("mdns", 1, "true or false"),
        ("swarm", 5, "text"),
        ("bootstrap", [1], "a list of texts"),
        ("iroh_relay", ["relay.example.org"], "without a path"),
        ("iroh_relay", ["https://relay.example.org"] * 5, "4 at most"),
        ("public_address", ["10.0.0.5"], "public IP address"),
        ("public_address", ["home.example.org"], "public IP address"),
        ("public_address", ["20.0.9.9:0"], "public IP address"),
        ("public_address", ["20.0.9.9:65536"], "public IP address"),
        ("public_address", ["2a10::9%eth0"], "public IP address"),
        ("public_address", ["20.0.9.7", "20.0.9.8", "20.0.9.9"], "2 at most"),
        ("bootstrap", 5, "a list of texts"),
        ("memory", "lots", "number and a unit"),
        ("memory", "-1GiB", "number and a unit"),
        ("format", "int3", "auto, fp32, published, bf16, int8, w8a8, int4"),
        ("kv", "fp32", "auto, int8"),
        ("wire", "float16", "auto, float32, bfloat16, int8"),
        ("device", "gpu", "cuda:0"),
        ("device", "cuda:first", "cuda:0"),
        ("device", "mps:1", "cuda:0"),
        ("log_level", "loud", "debug, info, warning, error"),
        ("log_format", "xml", "text, json"),
        ("max_sessions", 0, "between 1"),
        ("private_ends", "2", "the first and the last"),
        ("private_ends", "-1:2", "the first and the last"),
        ("expiry_s", 5, "three times"),
    ],
)
def test_a_wrong_value_names_itself_and_what_is_needed(
    name: str, value: Any, needs: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        load({name: value}, {"SHOAL_HOME": str(tmp_path)})
    assert needs in f"{caught.value.message} {caught.value.check}"
    assert name in caught.value.message or str(value) in caught.value.message


def test_where_a_wrong_value_came_from_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config\.toml has 'x' for port"):
        load(environ=written(tmp_path, "port = 'x'"))
    with pytest.raises(UsageError, match="SHOAL_PORT has 'x'"):
        load(environ={"SHOAL_HOME": str(tmp_path / "none"), "SHOAL_PORT": "x"})
    with pytest.raises(UsageError, match="--direct-port has 'x'"):
        load({"direct_port": "x"}, {"SHOAL_HOME": str(tmp_path / "none")})


def test_a_misspelt_option_in_the_file_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown option 'prot'") as caught:
        load(environ=written(tmp_path, "prot = 1"))
    assert "port" in caught.value.check


@pytest.mark.parametrize("content", [b"port = ", b"\xff\xfe", b"port = 1\nport = 2", b"a = " + b"[" * 5000])
def test_a_file_that_is_no_toml_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"config\.toml is not valid TOML"):
        load(environ={"SHOAL_HOME": str(tmp_path)})


def test_a_folder_in_the_files_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.toml").mkdir()
    with pytest.raises(UsageError, match=r"config\.toml"):
        load(environ={"SHOAL_HOME": str(tmp_path)})


def test_shoal_home_holds_everything(tmp_path: Path) -> None:
    paths = default_paths({"SHOAL_HOME": str(tmp_path)})
    for path in (paths.config_file, paths.identity, paths.swarms, paths.models, paths.nodes, paths.cache):
        assert tmp_path in path.parents


def test_without_shoal_home_the_platform_says_where() -> None:
    paths = default_paths({})
    assert paths.config.name == paths.data.name == paths.cache.name == "shoal"


@given(st.integers(0, 1 << 50), st.sampled_from(sorted(option_values._UNITS)))
def test_a_size_is_exact_in_every_unit(number: int, unit: str) -> None:
    assert (
        parse_size(f"{number}{unit.upper()}")
        == parse_size(f" {number} {unit} ")
        == number * option_values._UNITS[unit]
    )


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("1048576", 1 << 20), ("1.5GiB", 3 << 29), ("500 MB", 500_000_000)]
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "1 GiBs", "1e9", "-1", "1,5GB", "½GiB", "1" * 10_000 + "x"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


def test_settings_do_not_change() -> None:
    with pytest.raises(AttributeError):
        Settings().port = 1  # type: ignore[misc]


def test_a_child_gets_our_environment_without_our_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_PORT", "4001")
    monkeypatch.setenv("LANG", "C.UTF-8")
    environ = process_environ.child_environ(SHOAL_HOME="/tmp/x")
    assert "SHOAL_PORT" not in environ
    assert (environ["SHOAL_HOME"], environ["LANG"]) == ("/tmp/x", "C.UTF-8")


def test_a_child_reads_the_settings_that_we_have() -> None:
    settings = config.load(
        {
            "port": 4001,
            "memory": "1GiB",
            "mdns": False,
            "bootstrap": ["/a/p2p/b", "/c/p2p/d"],
            "announce_s": 0.5,
        },
        {"SHOAL_HOME": "/tmp/x"},
    )
    assert config.load({}, config.to_environ(settings) | {"SHOAL_HOME": "/tmp/x"}) == settings
