// OpenAI's JavaScript client: the examples of openai_client.py in its words. Prints what came as JSON.
import OpenAI from 'openai';

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: url + '/v1', apiKey: 'lm-studio' });
const found = {};

// ---- LM Studio's example, whole and streamed ----

const rhymes = [
  { role: 'system', content: 'Always answer in rhymes.' },
  { role: 'user', content: 'Introduce yourself.' },
];
const whole = await client.chat.completions.create({ model, messages: rhymes, temperature: 0 });
found.content = whole.choices[0].message.content;
found.whole_usage = whole.usage.total_tokens;
found.streamed = '';
for await (const chunk of await client.chat.completions.create({
  model, messages: rhymes, temperature: 0, stream: true, stream_options: { include_usage: true },
})) {
  found.streamed += chunk.choices[0]?.delta?.content ?? '';
  found.usage = chunk.usage?.total_tokens ?? found.usage;
}

// ---- tools: whole, streamed by hand, and the client's own loop ----

const parameters = {
  type: 'object', properties: { city: { type: 'string' } }, required: ['city'],
};
const weather = { name: 'get_weather', description: 'Get the weather in a city.', parameters };
const ask = { model, temperature: 0, tools: [{ type: 'function', function: weather }] };
const user = (content) => ({ messages: [{ role: 'user', content }] });
const oslo = user('What is the weather in Oslo?');
const cities = user('What is the weather in Oslo and in Rome?');

const called = await client.chat.completions.create({ ...ask, ...oslo });
found.finish_reason = called.choices[0].finish_reason;
found.call = called.choices[0].message.tool_calls.map((call) => call.function);
found.calls = [];
for await (const chunk of await client.chat.completions.create({
  ...ask, ...cities, stream: true,
})) {
  for (const { index, function: piece } of chunk.choices[0].delta.tool_calls ?? []) {
    found.calls[index] ??= { name: piece.name, arguments: '' };
    found.calls[index].arguments += piece.arguments;
  }
}
found.asked = [];
const getWeather = ({ city }) => {
  found.asked.push(city);
  return 'rain, 4 degrees';
};
const runnable = { type: 'function', function: { ...weather, function: getWeather, parse: JSON.parse } };
found.told = [];
for (const stream of [false, true]) {
  const runner = client.chat.completions.runTools({ ...ask, ...oslo, tools: [runnable], stream });
  found.told.push(await runner.finalContent());
}

// ---- a form, responses, and the rest ----

const schema = {
  type: 'object', properties: { name: { type: 'string' }, age: { type: 'integer' } },
  required: ['name', 'age'], additionalProperties: false,
};
const formed = await client.chat.completions.parse({
  model, temperature: 0, ...user('Anna is 12 years old. Answer as JSON with name and age.'),
  response_format: { type: 'json_schema', json_schema: { name: 'person', strict: true, schema } },
});
found.form = JSON.parse(formed.choices[0].message.content);

const input = { model, input: 'Introduce yourself.', temperature: 0 };
found.response = (await client.responses.create(input)).output_text;
found.said = '';
for await (const event of await client.responses.create({ ...input, stream: true })) {
  found.said += event.type === 'response.output_text.delta' ? event.delta : '';
}
const responded = await client.responses.create({
  model, input: 'What is the weather in Oslo?', temperature: 0,
  tools: [{ type: 'function', strict: true, ...weather }],
});
found.response_call = responded.output.map(({ name, arguments: text }) => [name, text]);

const seen = await client.chat.completions.create({
  model, temperature: 0,
  messages: [{ role: 'user', content: [
    { type: 'text', text: 'What color is this image?' },
    { type: 'image_url', image_url: { url: process.argv[4] } },
  ] }],
});
found.seen = seen.choices[0].message.content;

const embedding = await client.embeddings.create({ model, input: ['Once upon a time.'] });
found.n_embd = embedding.data[0].embedding.length;
const turn = '<|im_start|>user\nCount from 1 to 9.<|im_end|>\n<|im_start|>assistant\n';
const begun = { model, prompt: turn, max_tokens: 3, temperature: 0 };
found.legacy = (await client.completions.create(begun)).choices[0].finish_reason;
found.models = (await client.models.list()).data.map((each) => each.id);
try {
  await client.chat.completions.create({ model: 'no-such-model', messages: rhymes });
} catch (error) {
  found.status = error.status;
}
console.log(JSON.stringify(found));
