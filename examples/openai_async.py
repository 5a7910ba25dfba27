"""Three questions at once: the nodes put them into one batch."""

import asyncio

from openai import AsyncOpenAI


async def main() -> None:
    async with AsyncOpenAI() as client:
        model = (await client.models.list()).data[0].id

        async def ask(question: str) -> str:
            answer = await client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": question}], max_tokens=16, temperature=0
            )
            return f"{question} {answer.choices[0].message.content}"

        questions = ["What is a fish?", "What is a shoal?", "What is the sea?"]
        for line in await asyncio.gather(*(ask(question) for question in questions)):
            print(line)


asyncio.run(main())
