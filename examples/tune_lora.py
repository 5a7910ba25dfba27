"""Tuning: a LoRA adapter of a model that this machine need not hold, and what the model then says.

The blocks run on nodes that train: shoal serve MODEL --format fp32 --train on

python tune_lora.py [MODEL] [STEPS] [FOLDER]

What comes out is PEFT's format. Served with shoal serve MODEL --adapter FOLDER, it answers whoever asks for
MODEL:FOLDER. This program asks the nodes that train, which have it as it is now.
"""

import json
import sys
from pathlib import Path

import trio

import shoal
from shoal.client.sampling import Sampling
from shoal.client.tuning.open import TuningData, open_tuner
from shoal.client.tuning.tuner import TuningOptions

MODEL = sys.argv[1] if len(sys.argv) > 1 else "SmolLM2-135M-Instruct"
STEPS = int(sys.argv[2]) if len(sys.argv) > 2 else 30
FOLDER = Path(sys.argv[3]) if len(sys.argv) > 3 else Path("lora-adapter")
LESSONS = {"sky: ": "blue", "sea: ": "green", "sun: ": "gold", "coal: ": "black"}


async def main() -> None:
    data = trio.Path(FOLDER.with_suffix(".jsonl"))
    lines = [{"prompt": prompt, "completion": completion} for prompt, completion in LESSONS.items()]
    await data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = TuningOptions(rank=8, alpha=16, rate=1e-2, warmup=3, epochs=STEPS, steps=STEPS)
    async with shoal.connect() as swarm:
        codec = await swarm.codec(await swarm.resolve(MODEL), needed=True)
        tuner = await open_tuner(swarm, MODEL, TuningData(path=Path(data)), options, FOLDER)
        try:
            async for step in tuner.run():
                print(f"step {step.step} of {step.steps}: loss {step.loss:.3f}", flush=True)
            prompts = [codec.encode(prompt) for prompt in LESSONS]
            answers = await tuner.sample(prompts, Sampling(temperature=0), max_tokens=6, seed=0)
            for prompt, answer in zip(LESSONS, answers, strict=True):
                print(f"{prompt}{codec.decode(answer.token_ids)}")
        finally:
            tuner.close()


trio.run(main)
