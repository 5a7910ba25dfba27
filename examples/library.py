"""Shoal's own library: a swarm that this machine has joined, without a gateway.

python library.py [MODEL]
"""

import sys

import shoal

MODEL = sys.argv[1] if len(sys.argv) > 1 else "SmolLM2-135M-Instruct"

with shoal.connect() as swarm:
    answer = swarm.generate(MODEL, messages=[{"role": "user", "content": "What is a shoal?"}], max_tokens=16)
    for delta in answer:
        print(delta.text, end="", flush=True)
    print()
    for stage in answer.answer.route:
        print(f"blocks {stage.span} on {stage.peer}")
