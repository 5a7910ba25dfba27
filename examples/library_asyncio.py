"""The same for asyncio, two answers at once.

python library_asyncio.py [MODEL]
"""

import asyncio
import sys

import shoal

MODEL = sys.argv[1] if len(sys.argv) > 1 else "SmolLM2-135M-Instruct"


async def main() -> None:
    async with shoal.connect() as swarm:

        async def ask(text: str) -> str:
            deltas = swarm.generate(MODEL, messages=[{"role": "user", "content": text}], max_tokens=16)
            return "".join([delta.text async for delta in deltas])

        for answer in await asyncio.gather(ask("What is a shoal?"), ask("What is the sea?")):
            print(answer)


asyncio.run(main())
