"""The same for trio, stopped after eight pieces: the nodes free their room at once.

python library_trio.py [MODEL]
"""

import sys

import trio

import shoal

MODEL = sys.argv[1] if len(sys.argv) > 1 else "SmolLM2-135M-Instruct"


async def main() -> None:
    async with shoal.connect() as swarm:
        answer = swarm.generate(MODEL, messages=[{"role": "user", "content": "What is a shoal?"}])
        pieces = 0
        async for delta in answer:
            print(delta.text, end="", flush=True)
            pieces += 1
            if pieces == 8:
                break
        await answer.aclose()
        print(f"\n{len(answer.token_ids)} tokens, {answer.timing.tokens_per_s:.1f} a second")


trio.run(main)
