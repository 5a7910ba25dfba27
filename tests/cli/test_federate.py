"""`shoal federate`: what it asks for, what it refuses, and what it says."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager, nullcontext
from types import SimpleNamespace

import pytest
import trio
from msgspec import structs

from shoal.cli.federate import federate, told
from shoal.client.federated.look import RunView
from shoal.client.federated.participant import RoundReport
from shoal.errors import UsageError
from shoal.net.identity import Identity
from shoal.training.federated.demo.direction import DemoTerms
from shoal.training.federated.statements import (
    MemberCard,
    MemberStanding,
    TermsStatement,
    sign_statement,
)
from shoal.training.federated.terms import FederatedTerms, run_of

TERMS = FederatedTerms("fish", "sha256:a", 4, 8.0, (), 0, 100, b"l" * 32, 9, 20, "trimmed", 1.5)


def report(**fields):
    common = {"round": 3, "rounds": 9, "members": ("a", "b"), "agreed": 2, "loss": 0.5, "digest": "d" * 64}
    return RoundReport(**common | fields)


def test_each_round_is_told_and_who_was_left_out_is_named(capsys):
    lines = []
    told.tell_round(
        report(left_out={"b": "it has NaN"}, epsilon=2.5, sent_in_round=1234),
        lambda *what: lines.append(what),
        True,
    )
    told.tell_round(report(members=(), epsilon=2.5), lambda *what: lines.append(what), False)
    epsilon = "epsilon 2.5 with delta 1e-05"
    assert lines == [
        (f"round 3: 2 members, 2 with the same adapter, loss 0.5000, 1.2 kB sent, {epsilon}", 3, 9),
        (f"round 3: it was missed, and the adapter came from others, {epsilon}", 3, 9),
    ]
    out, err = capsys.readouterr()
    assert "round 3: b is left out: it has NaN" in err
    assert "no update counts" not in err
    said = json.loads(out)
    assert (said["left_out"], said["epsilon"], said["loss"]) == ({"b": "it has NaN"}, 2.5, 0.5)


def test_no_noise_and_too_little_of_it_are_told_apart():
    assert told.round_fields(report(epsilon=float("inf")))["epsilon"] == "infinite"
    assert told.round_fields(report(epsilon=None))["epsilon"] is None


def test_it_is_said_when_no_update_counts(capsys):
    told.tell_round(report(left_out={"a": "its norm is 9", "b": "it has NaN"}), lambda *what: None, False)
    assert "round 3: no update counts in whole" in capsys.readouterr().err


def test_a_run_is_shown_with_how_far_each_member_is(capsys):
    members = [Identity.ephemeral() for _ in range(3)]
    raw = sign_statement(TermsStatement(bytes(32), members[0].peer, TERMS), members[0].sign)
    view = RunView(run_of(raw))
    view.take(raw)
    for number, member in enumerate(members):
        view.take(sign_statement(MemberCard(view.run, member.peer, (), (), 1), member.sign))
        if number:
            standing = MemberStanding(view.run, member.peer, 9 if number == 1 else 4, b"d" * 32, True, 7, 1)
            view.take(sign_statement(standing, member.sign))
    lines = told.view_lines(view)
    assert "fish, rank 4: 9 rounds of 20 steps, trimmed" in lines
    assert f"{members[0].peer}  not heard yet" in lines
    assert f"{members[1].peer}  done, adapter 646464646464" in lines
    assert f"{members[2].peer}  round 5, ready" in lines
    fields = told.view_fields(view)
    assert fields["terms"]["rule"] == "trimmed"
    assert {member["round"] for member in fields["members"]} == {None, 9, 4}


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """How a run was opened: the arguments by position, and those by name. It has one round."""
    seen = []

    @asynccontextmanager
    async def open_run(swarm, *given, **named):
        seen.append((given, named))

        async def rounds():
            yield report(round=9)

        yield SimpleNamespace(code="c0de", terms=TERMS, participant=SimpleNamespace(run=rounds))

    for name in ("start_run", "join_run"):
        monkeypatch.setattr(f"shoal.client.federated.open.{name}", open_run)
    monkeypatch.setattr(federate, "in_swarm", lambda settings, use, identity: trio.run(use, None))
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "home"))
    return seen


def test_what_is_given_is_what_all_are_told(tmp_path, opened, capsys):
    out = tmp_path / "out"
    federate.start(
        "fish",
        tmp_path / "d.jsonl",
        out,
        rounds=9,
        mean="median",
        noise=2.0,
        rank=4,
        compress="int8",
        own_blocks=True,
        as_json=True,
    )
    ((_, _, options, chosen, _), more) = opened[0]
    assert (chosen.rounds, chosen.rule, chosen.noise, chosen.secret) == (9, "median", 2.0, False)
    assert (chosen.compress, chosen.kept, chosen.steps) == ("int8", None, 0)
    assert (options.rank, more["own_blocks"]) == (4, True)
    said, err = capsys.readouterr()
    assert json.loads(said.splitlines()[-1])["agreed"] == 2
    assert "shoal federate join c0de" in err
    assert (out / "member.key").exists()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"compress": "demo", "radius": 2.0}, "--compress demo and --radius do not go together"),
        ({"kept": 32}, "--kept is of DeMo"),
        ({"compress": "int8", "decay": 0.0}, "--decay is of DeMo"),
    ],
)
def test_an_option_that_would_have_no_effect_is_refused(given, why, tmp_path, monkeypatch):
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    with pytest.raises(UsageError, match=why):
        federate.start("fish", tmp_path / "d.jsonl", tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", [{"rate": 1e-3}, {"warmup": 0}, {}])
def test_rate_and_warm_up_of_one_member_are_refused_where_a_run_has_its_own(given, tmp_path, opened):
    federate.join("ab" * 32, tmp_path / "d.jsonl", tmp_path / "out", **given)
    look = opened[0][1]["look"]
    look(TERMS)  # by updates each member has its own
    by_demo = structs.replace(TERMS, demo=DemoTerms(0.01, 5))
    with pytest.raises(UsageError, match=f"--{next(iter(given))} is of AdamW") if given else nullcontext():
        look(by_demo)


def test_a_mean_and_a_code_that_are_none_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="there is no mean 'best'"):
        federate.start("fish", tmp_path / "d.jsonl", tmp_path / "out", mean="best")
    with pytest.raises(UsageError, match="there is no compression 'zip'"):
        federate.start("fish", tmp_path / "d.jsonl", tmp_path / "out", compress="zip")
    with pytest.raises(UsageError, match="no code of a run"):
        federate.join("fish", tmp_path / "d.jsonl", tmp_path / "out")
    with pytest.raises(UsageError, match="no code of a run"):
        federate.status("fish")
