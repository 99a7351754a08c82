// One answer being streamed into a message.

import { stream } from "./api.js";
import { before, turns } from "./conversation.js";
import { fields } from "./sampling.js";

const ALTERNATIVES = 3;
const LEAVING = 500; // milliseconds
const SHORTEST = 0.25; // seconds that a speed can be told of

export class Answer {
  /**
   * An answer for `message`, which may hold a beginning to go on with. Its tokens are kept with
   * the experts that each layer chose for them, and if `detailed` with what else was likely:
   * that costs the server some time.
   */
  constructor(conversation, message, model, detailed) {
    this.conversation = conversation;
    this.message = message;
    this.model = model;
    this.detailed = detailed;
    this.stopper = new AbortController();
    this.earlier = message.content ? message.stats?.tokens : 0;
    this.skip = message.content.length; // the server repeats what it goes on from
    this.waiting = []; // spellings of tokens whose text is still to come
    this.began = performance.now();
    this.firstAt = this.lastAt = 0;
    this.count = 0;
  }

  stop() {
    this.stopper.abort();
  }

  /** Streams until the end, calling `changed` after each chunk. Throws nothing. */
  async run(changed, lost) {
    const { message } = this;
    Object.assign(message, { state: "answering", runs: (message.runs ?? 0) + 1, reason: null, trouble: null });
    if (this.model.experts && (!message.content || message.tokens)) this.openTokens();
    try {
      const body = this.request();
      for await (const chunk of stream("/v1/chat/completions", body, this.stopper.signal)) {
        this.take(chunk);
        changed();
      }
      message.state = "done";
    } catch (error) {
      // A page that is being left loses its connections before it is told of that: wait for its end.
      if (error.lost) {
        await lost();
        await new Promise((resolve) => setTimeout(resolve, LEAVING));
      }
      message.state = error.name === "AbortError" ? "stopped" : "failed";
      if (message.state === "failed") {
        message.trouble = { text: error.message, status: error.status, code: error.code };
        if (!("status" in error)) console.error(error);
      }
    }
    this.close();
    changed();
  }

  request() {
    const { conversation, message } = this;
    const messages = turns(conversation, before(conversation, message));
    if (message.content) messages.push({ role: "assistant", content: message.content, prefix: true });
    const body = {
      model: this.model.id,
      messages,
      stream: true,
      stream_options: { include_usage: true },
      ...fields(conversation.settings),
    };
    if (!message.tokens) return body;
    const details = this.detailed ? { logprobs: true, top_logprobs: ALTERNATIVES } : {};
    return { ...body, routing: true, ...details };
  }

  openTokens() {
    const { tokens } = this.message;
    const routes = [...(tokens?.routes ?? [])];
    const empty = { starts: [], ends: [], chances: [], others: [] };
    const { layers, experts } = this.model;
    this.message.tokens = { layers, experts, each: 2, ...empty, ...tokens, routes };
  }

  take(chunk) {
    const [choice] = chunk.choices;
    if (chunk.usage) this.usage = chunk.usage;
    if (!choice) return;
    if (choice.finish_reason) this.message.reason = choice.finish_reason;
    let text = choice.delta.content ?? "";
    const skipped = Math.min(this.skip, text.length);
    this.skip -= skipped;
    text = text.slice(skipped);
    if (text || choice.routing) this.tick(choice.routing?.length ?? 1);
    if (choice.routing) this.takeTokens(choice.routing, choice.logprobs?.content ?? []);
    if (text) this.takeText(text);
  }

  tick(many) {
    this.lastAt = performance.now();
    this.firstAt ||= this.lastAt;
    this.count += many;
  }

  takeTokens(routing, logprobs) {
    const { tokens, content } = this.message;
    if (!tokens || !routing.every((layers) => layers?.length)) return;
    routing.forEach((layers, n) => {
      tokens.each = layers[0].length;
      tokens.routes.push(...layers.flat());
      tokens.starts.push(content.length);
      tokens.ends.push(content.length);
      tokens.chances.push(logprobs[n] ? Math.exp(logprobs[n].logprob) : null);
      const others = logprobs[n]?.top_logprobs ?? [];
      tokens.others.push(others.map(({ token, logprob }) => [token, Math.exp(logprob)]));
      this.waiting.push(logprobs[n]?.token ?? "");
    });
  }

  /** More text: it belongs to the tokens that wait for theirs. */
  takeText(text) {
    const { message } = this;
    const start = message.content.length;
    message.content += text;
    const { tokens } = message;
    if (!tokens?.ends.length) return;
    const first = tokens.ends.length - this.waiting.length;
    const lengths = this.waiting.map((spelled) => spelled.length);
    const sum = lengths.reduce((a, b) => a + b, 0);
    // The space before the first word of an answer is not part of its text.
    if (sum === text.length + 1 && this.waiting[0].startsWith(" ")) lengths[0] -= 1;
    const fits = sum - text.length <= 1 && lengths.reduce((a, b) => a + b, 0) === text.length;
    let at = start;
    lengths.forEach((length, n) => {
      tokens.starts[first + n] = at;
      if (fits) at += length;
      tokens.ends[first + n] = at;
    });
    tokens.ends[tokens.ends.length - 1] = message.content.length;
    this.waiting = [];
  }

  /** Tokens a second, once there are some. */
  get speed() {
    const seconds = (this.lastAt - this.firstAt) / 1000;
    if (this.count > 1 && seconds > SHORTEST) return (this.count - 1) / seconds;
    // What came at once tells nothing of the time between: all of the time does.
    return this.count > 1 ? this.count / ((this.lastAt - this.began) / 1000) : null;
  }

  close() {
    const { message, usage } = this;
    if (message.tokens) message.tokens.routes = Uint8Array.from(message.tokens.routes);
    if (!message.tokens?.starts.length) delete message.tokens;
    const many = usage?.completion_tokens ?? this.count;
    message.stats = {
      tokens: many + (this.earlier ?? 0),
      used: usage ? usage.prompt_tokens + many : null,
      prompt: usage?.prompt_tokens ?? null,
      cached: usage?.prompt_tokens_details?.cached_tokens ?? null,
      wait: this.firstAt ? (this.firstAt - this.began) / 1000 : null,
      speed: this.speed,
    };
  }
}
