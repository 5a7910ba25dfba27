"""Reinforcement learning through a swarm: GRPO on a task whose answers can be checked.

The adapter is tuned through nodes that train: shoal serve MODEL --format fp32 --train on

python grpo.py [MODEL] [STEPS] [FOLDER]

The model is shown two digits of a series and is to say the next one. The right digit is worth 1, another
one 0.2. The reward rises whatever the model was before, also with a small one that has never learnt anything.
"""

import sys
from pathlib import Path
from statistics import fmean

import trio

import shoal
from shoal.client.sampling import Sampling
from shoal.client.tuning.answers import group_advantages
from shoal.client.tuning.open import open_tuner
from shoal.client.tuning.tuner import TuningOptions

MODEL = sys.argv[1] if len(sys.argv) > 1 else "SmolLM2-135M-Instruct"
STEPS = int(sys.argv[2]) if len(sys.argv) > 2 else 60
FOLDER = Path(sys.argv[3]) if len(sys.argv) > 3 else Path("grpo-adapter")
SAMPLES = 12  # of each question
QUESTIONS = {f"{n - 1}, {n}, ": str(n + 1) for n in range(1, 9)}


def reward(answer: str, right: str) -> float:
    """1 for the right digit, 0.2 for another, 0 for anything else."""
    first = answer.strip()[:1]
    return 1.0 if first == right else 0.2 if first.isdigit() else 0.0


async def main() -> None:
    async with shoal.connect() as swarm:
        codec = await swarm.codec(await swarm.resolve(MODEL), needed=True)
        prompts = [codec.encode(question) for question in QUESTIONS]
        rights = list(QUESTIONS.values())
        options = TuningOptions(rank=8, alpha=16, rate=1e-2, warmup=3, batch_tokens=2048, save_every=10)
        tuner = await open_tuner(swarm, MODEL, None, options, FOLDER)
        try:
            first = await tuner.resume()
            for step in range(first, STEPS):
                asked = [prompt for prompt in prompts for _ in range(SAMPLES)]
                answers = await tuner.sample(asked, Sampling(temperature=1.0), max_tokens=1, seed=step)
                texts = [codec.decode(answer.token_ids) for answer in answers]
                examples, rewards = [], []
                for number, right in enumerate(rights):
                    group = range(number * SAMPLES, (number + 1) * SAMPLES)
                    found = [reward(texts[n], right) for n in group]
                    rewards += found
                    advantages = zip(group, group_advantages(found), strict=True)
                    # Where all are worth the same there is nothing to learn.
                    examples += [answers[n].example(advantage) for n, advantage in advantages if advantage]
                if examples:
                    await tuner.learn(examples)
                print(f"step {step + 1}: reward {fmean(rewards):.3f}", flush=True)
            await tuner.save()
        finally:
            tuner.close()


trio.run(main)
