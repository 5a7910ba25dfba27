"""A soft prompt: rows before every prompt, tuned through nodes that train, and then an answer with them.

The nodes need nothing for it but to train, and hold nothing of it: shoal serve MODEL --format fp32 --train on

python soft_prompt.py [MODEL] [STEPS] [FOLDER]
"""

import json
import sys
from pathlib import Path

import trio

import shoal
from shoal.client.tuning.open import TuningData, open_tuner
from shoal.client.tuning.tuner import TuningOptions

MODEL = sys.argv[1] if len(sys.argv) > 1 else "SmolLM2-135M-Instruct"
STEPS = int(sys.argv[2]) if len(sys.argv) > 2 else 30
FOLDER = Path(sys.argv[3]) if len(sys.argv) > 3 else Path("polite")
QUESTIONS = ("Where is the station?", "How late is it?", "What is a shoal?")


async def main() -> None:
    data = trio.Path(FOLDER.with_suffix(".jsonl"))
    lines = [{"prompt": question, "completion": " Dear friend"} for question in QUESTIONS]
    await data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = TuningOptions(method="prompt", prompt_tokens=8, rate=5e-2, warmup=3, epochs=STEPS, steps=STEPS)
    # From the start a client may name a folder that is written only now: it is read with the first question.
    async with shoal.connect(soft_prompt=(str(FOLDER),)) as swarm:
        tuner = await open_tuner(swarm, MODEL, TuningData(path=Path(data)), options, FOLDER)
        try:
            async for step in tuner.run():
                print(f"step {step.step} of {step.steps}: loss {step.loss:.3f}", flush=True)
        finally:
            tuner.close()
        answer = swarm.generate(f"{MODEL}:{FOLDER.name}", QUESTIONS[0], max_tokens=12)
        print(QUESTIONS[0], "".join([delta.text async for delta in answer]))


trio.run(main)
