// Ollama's JavaScript client: the examples of ollama_client.py in its words. Prints what came as JSON.
import { Ollama } from 'ollama';

const [host, model, image] = process.argv.slice(2);
const client = new Ollama({ host });
const found = {};
const ask = { model, options: { temperature: 0 }, keep_alive: '5m' };
const user = (content) => ({ messages: [{ role: 'user', content }] });

const introduce = user('Introduce yourself.');
const whole = await client.chat({ ...ask, ...introduce });
found.content = whole.message.content;
found.eval_count = whole.eval_count;
found.streamed = '';
for await (const part of await client.chat({ ...ask, ...introduce, stream: true })) {
  found.streamed += part.message.content;
  found.streamed_eval_count = part.eval_count;
}
found.response = (await client.generate({ ...ask, prompt: 'Introduce yourself.' })).response;

const parameters = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] };
const weather = { name: 'get_weather', description: 'Get the weather in a city.', parameters };
const tools = [{ type: 'function', function: weather }];
const oslo = user('What is the weather in Oslo?');
const { message } = await client.chat({ ...ask, ...oslo, tools });
found.call = message.tool_calls.map((call) => call.function);
const result = { role: 'tool', content: 'rain, 4 degrees', tool_name: 'get_weather' };
const messages = [...oslo.messages, message, result];
found.told = (await client.chat({ ...ask, messages, tools })).message.content;

const seen = { role: 'user', content: 'What color is this image?', images: [image.split(',')[1]] };
found.seen = (await client.chat({ ...ask, messages: [seen] })).message.content;
const format = {
  type: 'object', properties: { name: { type: 'string' }, age: { type: 'integer' } },
  required: ['name', 'age'],
};
const anna = 'Anna is 12 years old. Answer as JSON with name and age.';
found.form = JSON.parse((await client.generate({ ...ask, prompt: anna, format })).response);
found.n_embd = (await client.embed({ model, input: ['a', 'b'] })).embeddings.map((each) => each.length);
found.models = (await client.list()).models.map((each) => each.name);
found.running = (await client.ps()).models.map((each) => each.name);
found.capabilities = (await client.show({ model })).capabilities;
found.pulled = (await client.pull({ model })).status;
for await (const part of await client.pull({ model, stream: true })) {
  found.pulling = part.status;
}
found.errors = [];
for (const wrong of [() => client.chat({ ...introduce, model: 'none' }), () => client.delete({ model })]) {
  try {
    await wrong();
  } catch (error) {
    found.errors.push(error.status_code);
  }
}
console.log(JSON.stringify(found));
