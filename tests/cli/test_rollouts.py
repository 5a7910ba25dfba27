"""`shoal rollouts`: what it asks for, and what it says."""

from __future__ import annotations

import json
from types import SimpleNamespace

import trio

from shoal.cli.rollouts import rollouts
from shoal.client.rollouts.run import RolloutsProgress


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


def test_how_far_it_is_and_that_it_rests_are_told():
    told = []
    rollouts._tell(RolloutsProgress(3, 8, 30, 2.0, 4, resting=False), lambda *what: told.append(what))
    rollouts._tell(RolloutsProgress(3, 8, 0, 2.0, 4, resting=True), lambda *what: told.append(what))
    assert told[0] == ("3 of 8 samples, 15 tokens/s, 4 sessions at once", 3, 8)
    assert told[1] == ("3 of 8 samples, all of them from before, others are waited for", 3, 8)
