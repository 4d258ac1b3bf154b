// Vercel's AI SDK, with its provider for servers like this one and with OpenAI's. Prints what came as JSON.
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { embed, generateText, jsonSchema, Output, stepCountIs, streamText, tool } from 'ai';

const [url, model, image] = process.argv.slice(2);
const baseURL = url + '/v1';
const compatible = createOpenAICompatible({ name: 'lmlite', baseURL, supportsStructuredOutputs: true });
const openai = createOpenAI({ baseURL, apiKey: 'lm-studio' });
const models = [compatible(model), openai.chat(model), openai.responses(model)];

const object = (properties) => jsonSchema({
  type: 'object', properties, required: Object.keys(properties), additionalProperties: false,
});
const person = object({ name: { type: 'string' }, age: { type: 'integer' } });

async function ask(model) {
  const found = { asked: [], streamed: '' };
  const tools = {
    get_weather: tool({
      description: 'Get the weather in a city.',
      inputSchema: object({ city: { type: 'string' } }),
      execute: async ({ city }) => {
        found.asked.push(city);
        return 'rain, 4 degrees';
      },
    }),
  };
  const agent = { model, tools, temperature: 0, maxRetries: 0, stopWhen: stepCountIs(3) };
  const done = await generateText({ ...agent, prompt: 'What is the weather in Oslo?' });
  found.told = done.text;
  found.tokens = done.totalUsage.totalTokens;
  const streaming = streamText({ ...agent, prompt: 'What is the weather in Oslo?' });
  for await (const piece of streaming.textStream) {
    found.streamed += piece;
  }
  await generateText({ ...agent, prompt: 'What is the weather in Oslo and in Rome?' });
  const formed = await generateText({
    model, temperature: 0, maxRetries: 0, output: Output.object({ schema: person }),
    prompt: 'Anna is 12 years old. Answer as JSON with name and age.',
  });
  found.form = formed.output;
  const seen = await generateText({
    model, temperature: 0, maxRetries: 0,
    messages: [{ role: 'user', content: [
      { type: 'text', text: 'What color is this image?' },
      { type: 'image', image },
    ] }],
  });
  found.seen = seen.text;
  return found;
}

const ways = [];
for (const each of models) {
  ways.push(await ask(each));
}
const { embedding } = await embed({
  model: compatible.textEmbeddingModel(model), value: 'Once upon a time.', maxRetries: 0,
});
console.log(JSON.stringify({ ways, n_embd: embedding.length }));
