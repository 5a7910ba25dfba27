"""Reinforcement learning through a swarm: GRPO on a task whose answers can be checked.

The adapter is tuned through nodes that train: shoal serve MODEL --format fp32 --train on

python grpo.py [MODEL] [STEPS] [FOLDER]

The model is shown two digits of a series and is to say the next one. First it learns that a digit is wanted,
any of them; then, by rewards alone, which. So the reward begins near 0.1, whatever the model was before.
"""

import sys
from pathlib import Path
from statistics import fmean

import trio

import shoal
from shoal.client.sampling import Sampling
from shoal.client.tuning.answers import group_advantages
from shoal.client.tuning.data import Example
from shoal.client.tuning.open import open_tuner
from shoal.client.tuning.tuner import TuningOptions

MODEL = sys.argv[1] if len(sys.argv) > 1 else "SmolLM2-135M-Instruct"
STEPS = int(sys.argv[2]) if len(sys.argv) > 2 else 60
FOLDER = Path(sys.argv[3]) if len(sys.argv) > 3 else Path("grpo-adapter")
SAMPLES = 16  # of each question
FORMAT_STEPS = 10
QUESTIONS = {f"{n - 1}, {n}, ": str(n + 1) for n in range(1, 9)}


def reward(answer: str, right: str) -> float:
    """1 for the right digit, 0 for anything else."""
    return float(answer.strip()[:1] == right)


async def main() -> None:
    async with shoal.connect() as swarm:
        codec = await swarm.codec(await swarm.resolve(MODEL), needed=True)
        prompts = [codec.encode(question) for question in QUESTIONS]
        rights = list(QUESTIONS.values())
        options = TuningOptions(rank=8, alpha=16, rate=5e-3, warmup=3, batch_tokens=2048)
        tuner = await open_tuner(swarm, MODEL, None, options, FOLDER)
        # Any digit after each question, all alike.
        digits = [codec.encode(digit, special=False) for digit in "0123456789"]
        formed = [Example((*prompt, *digit), len(prompt)) for prompt in prompts for digit in digits]
        try:
            first = await tuner.resume()
            for _ in range(first, FORMAT_STEPS):
                await tuner.learn(formed)
            asked = [prompt for prompt in prompts for _ in range(SAMPLES)]
            for step in range(max(0, first - FORMAT_STEPS), STEPS):
                answers = await tuner.sample(asked, Sampling(temperature=1.0), max_tokens=1, seed=step)
                examples, rewards = [], []
                for number, right in enumerate(rights):
                    group = answers[number * SAMPLES : (number + 1) * SAMPLES]
                    found = [reward(codec.decode(answer.token_ids), right) for answer in group]
                    rewards += found
                    learnt = zip(group, group_advantages(found), strict=True)
                    examples += [answer.example(advantage) for answer, advantage in learnt]
                await tuner.learn(examples)
                print(f"step {step + 1}: reward {fmean(rewards):.3f}", flush=True)
                if step % 10 == 9:
                    await tuner.save()
            await tuner.save()
        finally:
            tuner.close()


trio.run(main)
