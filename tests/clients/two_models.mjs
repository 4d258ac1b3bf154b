// OpenAI's JavaScript client with the two models of two_models.py. Prints what came as JSON.
import OpenAI from 'openai';

const [url] = process.argv.slice(2);
const client = new OpenAI({ baseURL: url + '/v1', apiKey: 'lm-studio' });
const messages = [{ role: 'user', content: 'Say: red' }];
const found = { models: [], said: [] };

for await (const model of client.models.list()) found.models.push(model.id);
for (const model of ['tiny', 'noise', 'tiny']) {
  let said = '';
  for await (const chunk of await client.chat.completions.create({
    model, messages, temperature: 0, max_tokens: 4, stream: true,
  })) said += chunk.choices[0]?.delta?.content ?? '';
  found.said.push(said);
}
found.n_embd = (await client.embeddings.create({ model: 'noise', input: 'Hi' })).data[0].embedding.length;
found.status = await client.chat.completions.create({ model: 'gpt-4o-mini', messages }).then(
  () => 200, (error) => error.status);
console.log(JSON.stringify(found));
