"""`shoal fleet plan`: what it prints for a fleet, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.planning import measure as measure_module
from shoal.planning.roofline import Machine
from shoal.testing.checkpoints import FAMILIES
from shoal.testing.graphs import write_mlp
from tests.cli.conftest import Shoal

SIZES = ("2MiB", "800KiB", "500KiB", "300KiB", "1KiB")


def fleet_of(count: int, tmp_path: Path) -> Path:
    """So many machines, of which the smallest hold no block; and a model's config without weights."""
    FAMILIES["llama"]().save_pretrained(tmp_path / "llama")
    tables = "".join(
        f'[[machine]]\nname = "m{i:02}"\naddress = "10.0.0.{i + 1}"\nmemory = "{SIZES[i % 5]}"\n'
        f'bandwidth = "30GB/s"\nops = "{200 + i % 3}G"\nlink = "1Gb/s"\nrtt = "2ms"\n'
        for i in range(count)
    )
    found = tmp_path / "fleet.toml"
    found.write_text(f'model = "{tmp_path / "llama"}"\nformat = "int8"\nswarm = "office"\n{tables}')
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return fleet_of(10, tmp_path)


def test_fifty_machines_are_told_what_to_run(shoal: Shoal, tmp_path: Path) -> None:
    file = fleet_of(50, tmp_path)
    data = shoal("fleet", "plan", str(file), "--json").data
    assert (data["format"], data["blocks"], data["sessions"], data["gateway"]) == ("int8", 6, 50, "m00")
    assert [one["machine"] for one in data["left_out"]] == [f"m{i:02}" for i in range(4, 50, 5)]
    assert len(data["machines"]) == len(data["steps"]) == 40
    assert all(one["left"] >= 0 and one["weights"] > 0 and one["kv"] > 0 for one in data["machines"])
    assert data["least_peers"] >= len(data["routes"]) >= 20
    assert data["steps"][0]["commands"][1:] == [
        "shoal invite --swarm office > invite",
        f"shoal gateway --model {file.parent / 'llama'} --swarm office",
    ]
    spans = {one["machine"]: one["span"] for one in data["machines"]}
    for step in data["steps"][1:]:
        join, serve = step["commands"]
        assert join == "shoal join --name office - < invite"
        assert f"--span {spans[step['machine']]} --format int8 --memory " in serve
    out = shoal("fleet", "plan", str(file)).out
    for words in ("on 40 machines", "# m00, 10.0.0.1", "m04 serves nothing: it lacks", data["check"]):
        assert words in out
    assert all(command in out for step in data["steps"] for command in step["commands"])
    assert shoal("plan", str(file.parent / "llama"), "--machines", str(file), "--json").code == 0


def test_a_command_that_is_printed_is_one_that_shoal_takes(
    shoal: Shoal, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as the node: what it would be told is what the plan says."""
    import shlex

    from shoal.cli.node import node

    data = shoal("fleet", "plan", str(file), "--json").data
    taken = []
    monkeypatch.setattr(node, "_serve", lambda settings, span, *_, **__: taken.append((settings, span)))
    for step, told in zip(data["steps"][1:4], data["machines"][1:4], strict=True):
        words = shlex.split(step["commands"][-1])
        assert shoal(*words[1:]).code == 0
        settings, span = taken.pop()
        assert (str(span), settings.format, settings.swarm) == (told["span"], "int8", "office")
        assert 0 <= told["room"] - settings.memory < 1024


def test_what_the_file_lacks_is_refused(shoal: Shoal, file: Path, tmp_path: Path) -> None:
    text = file.read_text()
    file.write_text(text.replace("800KiB", "1KiB").replace("2MiB", "99KiB").replace("500KiB", "1KiB"))
    lacking = shoal("fleet", "plan", str(file))
    assert (lacking.code, lacking.out) == (6, "")
    assert "GiB" in lacking.err and "lack" in lacking.err
    file.write_text(text.replace("m07", "m08"))
    twice = shoal("fleet", "plan", str(file))
    assert twice.code == 2 and "two machines are named 'm08'" in twice.err
    file.write_text(text.partition("swarm")[2].partition("\n")[2])
    assert 'write model = "NAME"' in shoal("fleet", "plan", str(file)).err
    graph = write_mlp(tmp_path / "mlp.onnx")
    file.write_text(text.replace(str(tmp_path / "llama"), str(graph)))
    refused = shoal("fleet", "plan", str(file))
    assert refused.code == 2 and "is a graph" in refused.err
    assert shoal("fleet", "plan", str(tmp_path / "none.toml")).code == 2


def test_a_speed_that_is_not_said_is_this_machines(
    shoal: Shoal, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Machine("this machine", 8 << 30, 30e6, {"fp32": 2e8}, 1e9, 0.0)
    monkeypatch.setattr(measure_module, "measure_machine", lambda threads: here)
    file.write_text(file.read_text().replace('ops = "201G"\n', ""))
    assert "how fast 3 machines are: this one's speed stands in" in shoal("fleet", "plan", str(file)).out
