"""Federated rounds: members whose data differ, and stay with each of them, tune one adapter together.

python federated.py [MODEL] [ROUNDS] [FOLDER] [MEMBERS]

All members are in this one program, each with its own identity, folder and data; on machines of their own it
is ``shoal federate start`` and ``shoal federate join``. The model's blocks run here, so no node is asked, but
members find each other through the nodes of the swarm.
"""

import json
import sys
from pathlib import Path

import trio

import shoal
from shoal.client.federated.look import read_code
from shoal.client.federated.open import FederatedOptions, join_run, start_run
from shoal.client.federated.run_folder import RunFolder
from shoal.client.tuning.open import TuningData
from shoal.client.tuning.tuner import TuningOptions

MODEL = sys.argv[1] if len(sys.argv) > 1 else "SmolLM2-135M-Instruct"
ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 5
FOLDER = Path(sys.argv[3]) if len(sys.argv) > 3 else Path("federated-members")
MEMBERS = int(sys.argv[4]) if len(sys.argv) > 4 else 3
SUBJECTS = ("sea", "sky", "land", "wood", "town", "road")[:MEMBERS]  # each member knows of one alone
TUNING = TuningOptions(rank=4, rate=2e-3, warmup=2)
RUN = FederatedOptions(rounds=ROUNDS, steps=4, rule="trimmed", least=len(SUBJECTS))


def data_of(subject: str) -> TuningData:
    path = FOLDER / f"{subject}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"prompt": f"{number} {subject}: ", "completion": f"{subject} {number}"} for number in range(8)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return TuningData(path=path)


async def member(subject: str, code: str, started: trio.MemorySendChannel[str]) -> None:
    folder = RunFolder(FOLDER / subject)
    async with shoal.connect(identity=folder.identity()) as swarm:
        if code:
            opening = join_run(swarm, read_code(code), data_of(subject), TUNING, folder, own_blocks=True)
        else:
            opening = start_run(swarm, MODEL, data_of(subject), TUNING, RUN, folder, own_blocks=True)
        async with opening as run:
            await started.send(run.code)
            async for done in run.participant.run():
                who, digest = len(done.members), done.digest[:12]
                print(f"{subject}: round {done.round}, {who} members, loss {done.loss:.3f}, adapter {digest}")


async def main() -> None:
    send, receive = trio.open_memory_channel[str](len(SUBJECTS))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(member, SUBJECTS[0], "", send)
        code = await receive.receive()
        for subject in SUBJECTS[1:]:
            nursery.start_soon(member, subject, code, send)


trio.run(main)
