// Ollama's JavaScript client: npm install ollama. Its host is the gateway's address, without /v1.
import { Ollama } from "ollama";

const client = new Ollama({ host: process.env.OPENAI_BASE_URL.replace(/\/v1$/, "") });
const model = (await client.list()).models[0].name;
const messages = [{ role: "user", content: "What is a shoal?" }];
const options = { num_predict: 16, temperature: 0 };

console.log((await client.chat({ model, messages, options })).message.content);
for await (const part of await client.chat({ model, messages, options, stream: true })) {
  process.stdout.write(part.message.content);
}
console.log();
