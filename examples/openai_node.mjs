// OpenAI's JavaScript client: npm install openai. It reads OPENAI_BASE_URL and OPENAI_API_KEY.
import OpenAI from "openai";

const client = new OpenAI();
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "What is a shoal?" }];

const answer = await client.chat.completions.create({ model, messages, max_tokens: 16, temperature: 0 });
console.log(answer.choices[0].message.content);

const stream = await client.chat.completions.create({
  model,
  messages,
  max_tokens: 16,
  temperature: 0,
  stream: true,
});
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
console.log();
