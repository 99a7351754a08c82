// What the OpenAI client of npm makes of the server: node client.mjs URL; "ok" at the end.
import assert from "node:assert/strict";
import OpenAI from "openai";

const ANSWER = "A violin is a stringed instrument that is played with a bow.";
const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is a violin?" }];
const asked = { model: "demo", messages, temperature: 0 };

const whole = await client.chat.completions.create(asked);
assert.equal(whole.choices[0].message.content, ANSWER);
assert.equal(whole.usage.total_tokens, 21);

let said = "";
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
  said += chunk.choices[0]?.delta?.content ?? "";
}
assert.equal(said, ANSWER);

const response = await client.responses.create({ model: "demo", input: messages, temperature: 0 });
assert.equal(response.output_text, ANSWER);
said = "";
for await (const event of client.responses.stream({ model: "demo", input: messages, temperature: 0 })) {
  if (event.type === "response.output_text.delta") said += event.delta;
}
assert.equal(said, ANSWER);

const streamed = client.chat.completions.stream(asked);
assert.equal(await streamed.finalContent(), ANSWER);

const schema = {
  type: "object",
  properties: { age: { type: "integer", minimum: 0, maximum: 99 } },
  required: ["age"],
  additionalProperties: false,
};
const json = await client.chat.completions.parse({
  ...asked,
  response_format: { type: "json_schema", json_schema: { name: "age", strict: true, schema } },
});
assert.equal(typeof JSON.parse(json.choices[0].message.content).age, "number");

const tool = { type: "function", function: { name: "note", parameters: schema, strict: true } };
const called = await client.chat.completions.create({
  ...asked,
  tools: [tool],
  tool_choice: "required",
  parallel_tool_calls: false,
});
const [call] = called.choices[0].message.tool_calls;
assert.equal(call.function.name, "note");
assert.equal(called.choices[0].finish_reason, "tool_calls");
assert.equal(typeof JSON.parse(call.function.arguments).age, "number");

const results = client.chat.completions.runTools({
  ...asked,
  max_tokens: 60,
  tools: [{ type: "function", function: { ...tool.function, parse: JSON.parse, function: () => "noted" } }],
});
assert.ok((await results.finalChatCompletion()).choices[0].message);

const vectors = await client.embeddings.create({ model: "demo", input: ["one", "two"] });
assert.equal(vectors.data.length, 2);
assert.equal(vectors.data[0].embedding.length, 256);

const text = await client.completions.create({ model: "demo", prompt: "A violin is", temperature: 0 });
assert.ok(text.choices[0].text.startsWith(" a stringed"));

const names = [];
for await (const model of client.models.list()) names.push(model.id);
assert.deepEqual(names, ["demo"]);

await assert.rejects(client.chat.completions.create({ ...asked, model: "gpt-4o" }), (error) => {
  assert.ok(error instanceof OpenAI.NotFoundError);
  assert.equal(error.code, "model_not_found");
  return true;
});
await assert.rejects(client.chat.completions.create({ ...asked, stop: 5 }), OpenAI.BadRequestError);

const going = await client.chat.completions.create({ ...asked, stream: true });
for await (const _ of going) {
  going.controller.abort(); // the client leaves in the middle
}
console.log("ok");
