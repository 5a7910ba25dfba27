"""A question by OpenAI's own client. It reads OPENAI_BASE_URL and OPENAI_API_KEY."""

from openai import OpenAI

client = OpenAI()
model = client.models.list().data[0].id
answer = client.chat.completions.create(
    model=model,
    messages=[
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why do fish swim in shoals?"},
    ],
    max_tokens=32,
    temperature=0,
)
print(answer.choices[0].message.content)
print(f"{answer.usage.completion_tokens} tokens, {answer.choices[0].finish_reason}")
