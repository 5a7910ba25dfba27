// Vercel's AI SDK: npm install ai @ai-sdk/openai-compatible
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const baseURL = process.env.OPENAI_BASE_URL;
const shoal = createOpenAICompatible({ name: "shoal", baseURL, apiKey: process.env.OPENAI_API_KEY });
const models = await (await fetch(`${baseURL}/models`)).json();
const asked = {
  model: shoal(models.data[0].id),
  prompt: "What is a shoal?",
  maxOutputTokens: 16,
  temperature: 0,
};

console.log((await generateText(asked)).text);
for await (const piece of streamText(asked).textStream) process.stdout.write(piece);
console.log();
