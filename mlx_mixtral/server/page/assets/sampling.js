// How answers are sampled. A setting that is not set is not sent: the server has its own.

/** Number settings: [field of the API, label, what it does, least, most, step, where it rests]. */
export const NUMBERS = [
  ["temperature", "Temperature", "0 always takes the likeliest token; higher is more varied.", 0, 2, 0.05, null],
  ["top_p", "Top-p", "Only the likeliest tokens that together have this share.", 0, 1, 0.01, 1],
  ["top_k", "Top-k", "Only so many of the likeliest tokens; 0 is off.", 0, 200, 1, 0],
  ["min_p", "Min-p", "Only tokens at least this likely, compared with the likeliest; 0 is off.", 0, 1, 0.01, 0],
  ["repetition_penalty", "Repetition penalty", "Above 1, what was said becomes less likely.", 0.5, 2, 0.01, 1],
];

/** The fields of a request. */
export function fields(settings) {
  const body = {};
  for (const [name] of NUMBERS) if (settings[name] != null) body[name] = settings[name];
  if (settings.max_tokens) body.max_tokens = settings.max_tokens;
  if (settings.seed != null) body.seed = settings.seed;
  const stop = (settings.stop ?? "").split("\n").filter(Boolean);
  if (stop.length) body.stop = stop;
  return body;
}
