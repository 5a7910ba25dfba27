// Anthropic's JavaScript client: npm install @anthropic-ai/sdk. Its base URL is the gateway's, without /v1.
import Anthropic from "@anthropic-ai/sdk";

const baseURL = process.env.OPENAI_BASE_URL.replace(/\/v1$/, "");
const client = new Anthropic({ baseURL, apiKey: process.env.OPENAI_API_KEY });
const model = (await client.models.list()).data[0].id;
const asked = {
  model,
  messages: [{ role: "user", content: "What is a shoal?" }],
  max_tokens: 16,
  temperature: 0,
};

const answer = await client.messages.create(asked);
console.log(answer.content[0].text);
const stream = client.messages.stream(asked);
stream.on("text", (text) => process.stdout.write(text));
await stream.finalMessage();
console.log();
