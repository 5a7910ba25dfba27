"""`shoal tune`: what it asks for, and what it says."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import pytest
import trio

from shoal.cli.tune import tune
from shoal.client.tuning.tuner import TuningStep
from shoal.errors import UsageError


def test_each_step_is_told_in_a_line_and_as_json(capsys):
    told = []
    tune._tell(TuningStep(3, 9, 1.23456, 321.4), lambda *what: told.append(what), True)
    tune._tell(TuningStep(4, 9, 1.0, 300.0, 0.5, 1, 2), lambda *what: told.append(what), False)
    assert told[0] == ("loss 1.2346, 321 tokens/s", 3, 9)
    assert told[1] == (
        "loss 1.0000, evaluation 0.5000, 300 tokens/s, 1 step without a finite loss, 2 hops replaced",
        4,
        9,
    )
    said = json.loads(capsys.readouterr().out)
    assert said == {"step": 3, "loss": 1.23456, "tokens_s": 321.4, "evaluation": None}


def test_what_is_given_is_what_is_tuned(tmp_path, monkeypatch, capsys):
    seen = {}

    async def open_tuner(swarm, model, data, options, folder, *, own_blocks):
        seen.update(model=model, data=data, options=options, folder=folder, own_blocks=own_blocks)
        data.skipped(data.path, 7, "it is no JSON")
        data.skipped(data.evaluation, 3, "it is empty")

        async def run():
            yield TuningStep(1, 1, 0.5, 10.0, 0.25)

        losses = {"history": [(1, 0.5)], "evaluations": [(1, 0.25)]}
        return SimpleNamespace(run=run, close=lambda: seen.update(closed=True), **losses)

    def in_swarm(settings, use):
        seen.update(swarm=settings.swarm, public=settings.public)
        return trio.run(use, None)

    monkeypatch.setattr("shoal.client.tuning.open.open_tuner", open_tuner)
    monkeypatch.setattr(tune, "in_swarm", in_swarm)
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    tune.tune(
        "fish",
        tmp_path / "d.jsonl",
        tmp_path / "out",
        tmp_path / "e.jsonl",
        rank=4,
        layer=["q_proj"],
        skip_bad=True,
        own_blocks=True,
        public=True,
        as_json=True,
    )
    assert (seen["swarm"], seen["public"]) == ("public", True)
    assert seen["closed"]
    assert seen["own_blocks"]
    assert (seen["model"], seen["folder"]) == ("fish", tmp_path / "out")
    assert (seen["options"].rank, seen["options"].layers) == (4, ("q_proj",))
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1]) == {
        "adapter": str(tmp_path / "out"),
        "steps": 1,
        "loss": 0.5,
        "evaluation": 0.25,
        "plot": None,
    }
    assert not (tmp_path / "out").exists()  # nothing was saved, and a plot alone would keep the next run out
    for number, name, why in ((7, "d.jsonl", "it is no JSON"), (3, "e.jsonl", "it is empty")):
        assert f"line {number} of {tmp_path / name} is skipped: {why}" in err
        assert f"1 line of {tmp_path / name} skipped" in err


def test_a_soft_prompt_has_a_rate_of_its_own_and_a_method_that_is_none_is_refused(
    tmp_path, monkeypatch, capsys
):
    seen = []

    async def open_tuner(swarm, model, data, options, folder, *, own_blocks):
        seen.append(options)

        async def run():
            yield TuningStep(1, 1, 0.5, 10.0)

        return SimpleNamespace(run=run, close=lambda: None, history=[], evaluations=[])

    monkeypatch.setattr("shoal.client.tuning.open.open_tuner", open_tuner)
    monkeypatch.setattr(tune, "in_swarm", lambda settings, use: trio.run(use, None))
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    for given in ({}, {"method": "prompt", "prompt_tokens": 7}, {"method": "prompt"}):
        tune.tune("fish", tmp_path / "d.jsonl", tmp_path / "mine", **given)
    assert [(o.method, o.rate) for o in seen] == [("lora", 2e-4), ("prompt", 1e-2), ("prompt", 1e-2)]
    assert (seen[0].rank, seen[0].alpha) == (8, 16)
    assert [o.prompt_tokens for o in seen[1:]] == [7, 20]
    out = capsys.readouterr().out
    assert f"shoal serve fish --adapter {tmp_path / 'mine'}" in out
    assert f"shoal run fish:mine --soft-prompt {tmp_path / 'mine'}" in out
    with pytest.raises(UsageError, match="there is no method 'magic'"):
        tune.tune("fish", tmp_path / "d.jsonl", tmp_path / "mine", method="magic")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"prompt_tokens": 20}, "--prompt-tokens: only with --method prompt"),
        ({"method": "prompt", "rank": 8}, "--rank: only with --method lora"),
        (
            {"method": "prompt", "alpha": 1, "layer": ["q_proj"]},
            "--alpha and --layer: only with --method lora",
        ),
    ],
)
def test_an_option_that_the_method_would_not_heed_is_refused(tmp_path, monkeypatch, given, says):
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    with pytest.raises(UsageError, match=says):
        tune.tune("fish", tmp_path / "d.jsonl", tmp_path / "mine", **given)


async def test_a_plot_of_the_losses_is_left_beside_the_adapter_also_of_a_run_that_is_cut(tmp_path, capsys):
    (tmp_path / "tuning.json").write_text("{}")

    async def run():
        yield TuningStep(1, 9, 2.0, 1.0)
        raise KeyboardInterrupt

    tuner = SimpleNamespace(run=run, close=lambda: None, history=[(1, 2.0), (2, 1.5)], evaluations=[(2, 1.8)])
    with pytest.raises(KeyboardInterrupt):
        await tune._all_steps(tuner, tmp_path, lambda *what: None, False)
    drawn = (tmp_path / "loss.svg").read_text()
    assert ET.fromstring(drawn).tag.endswith("svg")
    assert "loss 1.500" in drawn
    assert "held back 1.800" in drawn
    (tmp_path / "loss.svg").unlink()
    (tmp_path / "loss.svg").mkdir()
    tune._draw(tuner, tmp_path)
    assert "loss.svg cannot be written" in capsys.readouterr().err


def test_a_loss_that_is_no_number_is_null_in_json(capsys):
    tune._tell(TuningStep(1, 9, float("nan"), 1.0, float("inf")), lambda *what: None, True)
    said = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (said["loss"], said["evaluation"]) == (None, None)
