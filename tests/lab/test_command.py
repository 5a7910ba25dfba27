"""`python -m shoal.testing.lab`: what it prints, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.cli import main
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.lab.__main__ import app
from shoal.testing.lab.judge import Fault
from shoal.testing.lab.report import LabReport

FAULTS = (Fault(0, "error", "no error where one was to come"), Fault(1, "gap", "1.2 s, and 0.2 are allowed"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize("faults", [(), FAULTS])
def test_the_exit_code_says_whether_all_promises_were_kept(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    faults: tuple[Fault, ...],
) -> None:
    async def run_lab(*_: object) -> LabReport:
        return LabReport("freeze", "fish", "fp32", 0, 2, 0, (), faults, 1.0)

    monkeypatch.setattr("shoal.testing.lab.lab.run_lab", run_lab)
    code = main.run(["freeze", "--json"], app)
    said = json.loads(capsys.readouterr().out)
    assert (code, said["ok"]) == ((1, False) if faults else (0, True))
    assert [(fault["run"], fault["what"]) for fault in said["errors"]] == [(f.run, f.what) for f in faults]


def test_a_plan_that_does_not_fit_the_model_is_one_clear_error(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_checkpoint(home / "checkpoint", "llama")
    plan = home / "plan.json"
    plan.write_text(json.dumps({"model": str(checkpoint), "nodes": [{"span": "0:4"}]}))
    code = main.run(["kill", "--json", "--plan", str(plan)], app)
    said = json.loads(capsys.readouterr().out)
    assert (code, said["error"]["code"]) == (2, "usage")
    assert "no node serves blocks 4:6 of 6" in said["error"]["message"]
