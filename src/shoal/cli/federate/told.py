"""What `shoal federate` says of rounds and runs."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Any

from shoal.cli.output import many, say
from shoal.training.federated.private import DELTA
from shoal.training.federated.terms import told

if TYPE_CHECKING:
    from shoal.client.federated.look import RunView
    from shoal.client.federated.participant import RoundReport
    from shoal.progress import Progress


def tell_round(done: RoundReport, report: Progress, as_json: bool) -> None:
    """One round: on the progress line, and whoever was left out on a line of its own."""
    if not done.members:
        line = f"round {done.round}: it was missed, and the adapter came from others"
    else:
        who = many(len(done.members), "member")
        line = f"round {done.round}: {who}, {done.agreed} with the same adapter, loss {done.loss:.4f}"
        line += f", {done.sent_in_round / 1000:,.1f} kB sent"
    if done.epsilon is not None:
        line += f", epsilon {done.epsilon:.3g} with delta {DELTA:g}"
    report(line, done.round, done.rounds)
    for peer, why in {**done.left_out, **done.missing}.items():
        say(f"round {done.round}: {peer} is left out: {why}")
    if done.members and set(done.members) <= done.left_out.keys() | done.missing.keys():
        say(f"round {done.round}: no update counts in whole, and the adapter moves little or not at all")
    if as_json:
        sys.stdout.write(json.dumps(round_fields(done), allow_nan=False) + "\n")
        sys.stdout.flush()


def round_fields(done: RoundReport) -> dict[str, Any]:
    """A round as JSON has it; ``epsilon`` is null without noise, and "infinite" with too little of it."""
    return {
        "round": done.round,
        "members": list(done.members),
        "left_out": done.left_out,
        "missing": done.missing,
        "digest": done.digest,
        "agreed": done.agreed,
        "loss": done.loss if math.isfinite(done.loss) else None,
        "sent": done.sent,
        "sent_in_round": done.sent_in_round,
        "epsilon": "infinite" if done.epsilon == math.inf else done.epsilon,
    }


def view_fields(view: RunView) -> dict[str, Any]:
    """A run as JSON has it."""
    members = [
        {
            "peer": peer,
            "round": said.round if (said := view.standings.get(peer)) else None,
            "ready": said.ready if said else None,
            "digest": said.state.hex() if said else None,
        }
        for peer in sorted(view.cards)
    ]
    return {"run": view.run.hex(), "terms": told(view.terms), "members": members}


def view_lines(view: RunView) -> str:
    """The same for people."""
    terms = view.terms
    how = "" if terms.compress == "none" else f", sent by {terms.compress}"
    lines = [
        f"{terms.model}, rank {terms.rank}: {many(terms.rounds, 'round')} of {many(terms.steps, 'step')}, "
        f"{'secret ' if terms.secret else ''}{terms.rule}, updates up to a norm of {terms.radius:.3g}{how}",
        f"{many(len(view.cards), 'member')}, {terms.least} at least",
    ]
    for peer in sorted(view.cards):
        said = view.standings.get(peer)
        if said is None:
            lines.append(f"  {peer}  not heard yet")
        elif said.round >= terms.rounds:
            lines.append(f"  {peer}  done, adapter {said.state.hex()[:12]}")
        else:
            how = "ready" if said.ready else "learning"
            lines.append(f"  {peer}  round {said.round + 1}, {how}, adapter {said.state.hex()[:12]}")
    return "\n".join(lines)
