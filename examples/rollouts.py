"""Samples for reinforcement learning: some answers to each prompt, with their log-probabilities, in a file.

They give way to whoever waits for an answer. A run that is killed goes on when it is started again.

python rollouts.py [MODEL] [SAMPLES] [FILE.jsonl]
"""

import sys
from pathlib import Path
from statistics import fmean

import shoal
from shoal.client.rollouts.run import RolloutOptions
from shoal.client.rollouts.samples import read_samples

MODEL = sys.argv[1] if len(sys.argv) > 1 else "SmolLM2-135M-Instruct"
SAMPLES = int(sys.argv[2]) if len(sys.argv) > 2 else 4
FILE = Path(sys.argv[3]) if len(sys.argv) > 3 else Path("samples.jsonl")
PROMPTS = [
    {"id": "sea", "prompt": "The sea is"},
    {"id": "shoal", "messages": [{"role": "user", "content": "What is a shoal?"}]},
]

with shoal.connect() as swarm:
    made = swarm.rollouts(MODEL, PROMPTS, FILE, options=RolloutOptions(samples=SAMPLES, max_tokens=16))
    print(f"{made.made} samples in {FILE}")
for _, sample in read_samples(FILE):
    print(f"{sample.id} {sample.sample}: {fmean(sample.logprobs):.2f} a token, {sample.text!r}")
