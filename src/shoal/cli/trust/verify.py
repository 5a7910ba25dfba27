"""`shoal verify`: check the receipts of an answer, and compute it again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import options
from shoal.cli.ledger.wallet import PasswordFileOption
from shoal.cli.output import emit, many, printable
from shoal.cli.progress import working
from shoal.config import Settings
from shoal.errors import EXIT_FAILURE, UsageError
from shoal.option_values import show_coins

if TYPE_CHECKING:
    from shoal.models.store.local_model import LocalModel
    from shoal.models.store.store import ModelStore
    from shoal.progress import Progress
    from shoal.trust.answer import Contradiction, KeptAnswer

WEIGHTS_NAMED = 8
"""Tensors that differ, named in one sentence."""


def register(app: typer.Typer) -> None:
    app.command()(verify)


def verify(
    answer: Annotated[Path, typer.Argument(metavar="ANSWER.json", help="As shoal run --receipts writes it.")],
    other: Annotated[
        Path | None,
        typer.Argument(metavar="OTHER.json", help="With --evidence: the other one.", show_default=False),
    ] = None,
    evidence: Annotated[
        bool, typer.Option("--evidence", help="Look in two answers for receipts that cannot both be honest.")
    ] = False,
    slash: Annotated[
        bool,
        typer.Option(
            "--slash", help="With --evidence: take the stake of who signed both, over the test chain."
        ),
    ] = False,
    password_file: PasswordFileOption = None,
    replay: Annotated[
        bool, typer.Option("--replay/--no-replay", help="Compute the answer again, if the model is here.")
    ] = True,
    threads: options.ThreadsOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Check who has signed an answer, and whether it is what the model gives.

    Needs no swarm. Signatures and links between hops are checked without weights. Where this machine has the
    model, and bits are the same on every machine (int8, w8a8 and int4 of Llama-like models on the CPU), all
    blocks are computed again. Exit code 1 if anything differs.
    """
    if evidence != (other is not None):
        raise UsageError("--evidence needs two answers", next_command="shoal verify --evidence A.json B.json")
    if slash and other is None:
        raise UsageError(
            "--slash needs evidence", next_command="shoal verify --evidence --slash A.json B.json"
        )
    if other is not None:
        found = _evidence(_read(answer), _read(other), password_file, slash=slash)
    else:
        with working(f"checking {answer.name}") as report:
            settings = options.settings(threads=threads)
            found = checked(_read(answer), settings, report, replay=replay)
    emit(found, as_json, lambda: "\n".join(printable(line) for line in found["said"]))
    if not found["valid"]:
        raise typer.Exit(EXIT_FAILURE)


def _read(file: Path) -> KeptAnswer:
    from shoal.trust.answer import MAX_FILE, read_kept_answer

    try:
        with file.open("rb") as stream:
            return read_kept_answer(stream.read(MAX_FILE + 1), str(file))
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}", check="check the file's name") from error


def checked(answer: KeptAnswer, settings: Settings, report: Progress, *, replay: bool) -> dict[str, Any]:
    """What is wrong with an answer, as ``--json`` shows it, with sentences for people."""
    from shoal.models.store.store import ModelStore
    from shoal.net.identity import verify as verify_signature
    from shoal.trust.answer import check_answer, uncompared

    faults = check_answer(answer, verify_signature)
    found: dict[str, Any] = {
        "valid": not faults,
        "tokens": answer.tokens,
        "hops": [hop.peer for hop in answer.hops],
        "numerics": answer.numerics,
        "faults": [{"kind": f.kind, "hops": f.hops, "window": f.window, "what": f.what} for f in faults],
        "uncompared_windows": uncompared(answer),
        "replayed": None,
        "said": [fault.what for fault in faults],
    }
    if faults:
        return found
    hops = many(len(answer.hops), "hop")
    found["said"].append(f"signed by {hops} and whole: {many(answer.tokens, 'token')} by {answer.numerics}")
    if found["uncompared_windows"]:
        several = many(found["uncompared_windows"], "window")
        found["said"].append(f"{several} after a loss could not be compared between neighbours")
    if replay:
        store = ModelStore(settings.paths.models)
        model = store.find(answer.digest)
        if model is None:
            text = f"{answer.model} is not on this machine, so it was not computed again: shoal models pull"
            found["said"].append(f"{text} {answer.model}")
        else:
            _replay(found, answer, store, model, settings, report)
    return found


def _replay(
    found: dict[str, Any],
    answer: KeptAnswer,
    store: ModelStore,
    model: LocalModel,
    settings: Settings,
    report: Progress,
) -> None:
    from shoal.client.receipts.replay import check_replayable, replay
    from shoal.errors import NotAllowed
    from shoal.models.checkpoint.checkpoint import open_checkpoint
    from shoal.models.checkpoint.digest import changed_items
    from shoal.models.checkpoint.manifest import read_manifest
    from shoal.models.checkpoint.parts import MANIFEST

    try:
        check_replayable(answer, model)
    except NotAllowed as error:
        found["said"].append(f"not computed again: {error.message}")
        return
    manifest = read_manifest((store.shared_files(model) / MANIFEST).read_bytes())
    changed = changed_items(open_checkpoint(model.path), manifest, report)
    if changed:
        named = ", ".join(changed[:WEIGHTS_NAMED]) + (" and more" if len(changed) > WEIGHTS_NAMED else "")
        found |= {"valid": False, "weights": changed}
        found["said"].append(f"the weights here are not those of {answer.digest}: {named} changed since")
        return
    result = replay(answer, model, settings, report)
    difference = result.difference
    found["replayed"] = {"tokens": result.tokens, "chosen": result.chosen}
    if difference is not None:
        found["valid"] = False
        found["replayed"] |= {
            "hop": difference.hop,
            "window": difference.window,
            "token": difference.token,
            "what": difference.what,
        }
        found["said"].append(difference.what)
        return
    again = f"computed again here: {many(result.tokens, 'token')} to the bit"
    chosen = f", {many(result.chosen, 'token')} chosen again" if result.chosen else ""
    found["said"].append(f"{again}{chosen}; the answer is valid")


def _evidence(
    one: KeptAnswer, other: KeptAnswer, password_file: Path | None, *, slash: bool
) -> dict[str, Any]:
    from shoal.net.identity import verify as verify_signature
    from shoal.trust.answer import find_contradiction

    found = find_contradiction(one, other, verify_signature)
    if found is None and slash:
        raise UsageError(
            "no two receipts of one peer contradict each other: nothing was sent to the chain",
            check="give the two answers in which one hop has signed two things about one question",
        )
    if found is None:
        said = "no two receipts of one peer contradict each other"
        return {"valid": True, "said": [said], "peer": None, "window": None}
    said = (
        f"{found.peer} has signed two different receipts for window {found.one.window} of one session and "
        "one question: proof that it lied"
    )
    shown: dict[str, Any] = {
        "valid": False,
        "said": [said],
        "peer": found.peer,
        "window": found.one.window,
    }
    if slash:
        _slash(found, password_file, shown)
    return shown


def _slash(proof: Contradiction, password_file: Path | None, shown: dict[str, Any]) -> None:
    from shoal.cli.ledger.wallet import MOST_COST, opened
    from shoal.ledger import staking
    from shoal.ledger.vouchers.typed_data import show_address

    client, key = opened(options.settings(), MOST_COST, password_file)
    done = staking.slash(client, key, proof)
    shown["slashed"] = {
        "delegate": show_address(done.delegate),
        "stake_wei": str(done.stake),
        "transaction": done.transaction,
    }
    shown["said"].append(
        f"its stake of {show_coins(done.stake)} is lost, and half of it is yours: transaction"
        f" {done.transaction}"
    )
