"""`shoal rollouts`: what it asks for, and what it says."""

from __future__ import annotations

import json
from types import SimpleNamespace

import trio

from shoal.cli.rollouts import rollouts
from shoal.client.rollouts.run import RolloutOptions, RolloutsProgress
from shoal.client.sampling import Sampling


def test_what_is_given_is_what_is_made(tmp_path, monkeypatch, capsys):
    seen = {}

    async def made(model, prompts, out, *, options, format, skipped, told):
        seen.update(model=model, prompts=prompts, out=out, options=options, format=format)
        skipped(3, "it is no JSON")
        told(RolloutsProgress(3, 8, 30, 2.0, 4, resting=False))
        return RolloutsProgress(8, 8, 64, 4.0, 0, resting=False)

    swarm = SimpleNamespace(rollouts=made)
    monkeypatch.setattr(rollouts, "in_swarm", lambda settings, use: trio.run(use, swarm))
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    rollouts.rollouts(
        "fish",
        tmp_path / "p.jsonl",
        tmp_path / "o.jsonl",
        samples=8,
        temperature=0.7,
        stop=["\n"],
        seed=3,
        receipts=True,
        skip_bad=True,
        as_json=True,
    )
    assert (seen["model"], seen["prompts"], seen["out"]) == (
        "fish",
        tmp_path / "p.jsonl",
        tmp_path / "o.jsonl",
    )
    options = seen["options"]
    assert (options.samples, options.sampling.temperature, options.stop) == (8, 0.7, ("\n",))
    assert (options.seed, options.receipts) == (3, True)
    out, err = capsys.readouterr()
    said = json.loads(out.splitlines()[-1])
    assert (said["samples"], said["made"], said["tokens"], said["skipped"]) == (8, 8, 64, 1)
    assert "line 3 of" in err
    assert f"1 line of {tmp_path / 'p.jsonl'} skipped" in err


def test_each_option_has_its_setting_or_its_part_of_the_run(shoal, tmp_path, monkeypatch):
    seen = {}

    async def made(model, prompts, out, *, options, format, skipped, told):
        seen.update(model=model, prompts=prompts, out=out, options=options, format=format, skipped=skipped)
        return RolloutsProgress(4, 4, 8, 1.0, 0, resting=False)

    def entered(settings, use):
        seen["settings"] = settings
        return trio.run(use, SimpleNamespace(rollouts=made))

    monkeypatch.setattr(rollouts, "in_swarm", entered)
    given = f"""rollouts fish --prompts {tmp_path}/p --out {tmp_path}/o -n 4 --max-tokens 9 --temperature 0.5
        --top-k 3 --top-p 0.8 --min-p 0.1 --stop END --stop STOP --seed 6 --at-once 5 --receipts
        --swarm home --format fp32 --protect audited --only peer --credits off --max-price 0.002
        --pay-budget 0.05 --pay-password-file {tmp_path}/word"""
    ran = shoal(*given.split())
    assert ran.code == 0, ran.err
    assert (seen["model"], seen["skipped"]) == ("fish", None)
    assert (seen["prompts"], seen["out"], seen["format"]) == (tmp_path / "p", tmp_path / "o", "fp32")
    assert seen["options"] == RolloutOptions(
        samples=4,
        max_tokens=9,
        sampling=Sampling(temperature=0.5, top_k=3, top_p=0.8, min_p=0.1),
        stop=("END", "STOP"),
        seed=6,
        at_once=5,
        receipts=True,
    )
    settings = seen["settings"]
    assert (settings.swarm, settings.model, settings.protect, settings.only) == (
        "home",
        "fish",
        "audited",
        ("peer",),
    )
    assert (settings.credits, settings.max_price, settings.pay_budget) == (False, "0.002", "0.05")
    assert settings.pay_password_file == f"{tmp_path}/word"


def test_how_far_it_is_and_that_it_rests_are_told():
    told = []
    rollouts._tell(RolloutsProgress(3, 8, 30, 2.0, 4, resting=False), lambda *what: told.append(what))
    rollouts._tell(RolloutsProgress(3, 8, 0, 2.0, 4, resting=True), lambda *what: told.append(what))
    assert told[0] == ("3 of 8 samples, 15 tokens/s, 4 sessions at once", 3, 8)
    assert told[1] == ("3 of 8 samples, all of them from before, others are waited for", 3, 8)
