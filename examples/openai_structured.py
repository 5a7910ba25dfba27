"""An answer that fits a schema, as a Pydantic model."""

from typing import Literal

from openai import OpenAI
from pydantic import BaseModel


class Review(BaseModel):
    mood: Literal["good", "bad", "mixed"]
    again: bool


client = OpenAI()
answer = client.chat.completions.parse(
    model=client.models.list().data[0].id,
    messages=[{"role": "user", "content": "The fish was fresh, but we waited for an hour."}],
    response_format=Review,
    max_tokens=128,
    temperature=0,
)
print(answer.choices[0].message.parsed)
