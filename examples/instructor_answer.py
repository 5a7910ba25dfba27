"""Instructor: pip install instructor. The answer is a Pydantic model, or an error."""

from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel, ConfigDict


class Animal(BaseModel):
    model_config = ConfigDict(extra="forbid")  # else a small model may add fields without end

    kind: Literal["fish", "bird", "mammal"]
    swims: bool


plain = OpenAI()
client = instructor.from_openai(plain)
animal = client.chat.completions.create(
    model=plain.models.list().data[0].id,
    messages=[{"role": "user", "content": "A salmon goes up the river."}],
    response_model=Animal,
    max_tokens=128,
    temperature=0,
)
print(animal)
