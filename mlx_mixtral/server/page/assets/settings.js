// The settings of a conversation, and of the page.

import { byId, el } from "./dom.js";
import { key } from "./api.js";
import { remember, remembered } from "./remember.js";
import { NUMBERS } from "./sampling.js";
import { exportAll, importFile } from "./transfer.js";

const KEPT = "settings";

/** The settings that new conversations begin with. */
export function standing() {
  try {
    return JSON.parse(remembered(KEPT)) ?? {};
  } catch {
    return {};
  }
}

/** A form for the conversation's settings; each change is kept at once. */
export function settingsForm(app) {
  const { settings } = app.conversation;
  const change = (name, value) => {
    if (value === null || value === "") delete settings[name];
    else settings[name] = value;
    app.settingsChanged();
  };
  const system = el("textarea", {
    id: "system", rows: "4", placeholder: "Who should the model be, how should it answer?",
    oninput: () => change("system", system.value),
  }); // prettier-ignore
  system.value = settings.system ?? "";
  const stop = el("textarea", {
    id: "stop", rows: "2", placeholder: "One a line", oninput: () => change("stop", stop.value),
  }); // prettier-ignore
  stop.value = settings.stop ?? "";
  return el(
    "form.settings",
    { onsubmit: (event) => event.preventDefault() },
    el("label.field", {}, el("span", {}, "System prompt"), system),
    el("h3", {}, "Sampling"),
    ...NUMBERS.map((number) => slider(number, settings, change, app.model)),
    whole("max_tokens", "Longest answer", "tokens", settings, change, 1),
    whole("seed", "Seed", "random", settings, change, 0),
    el("label.field", {}, el("span", {}, "Stop at these texts"), stop),
    el(
      "div.buttons",
      {},
      button("Use for new chats", () => {
        remember(KEPT, JSON.stringify(settings));
        app.tell("New chats will begin with these settings.");
      }),
      button("Reset", () => {
        for (const name of Object.keys(settings)) delete settings[name];
        remember(KEPT, null);
        app.settingsChanged();
        app.panel.refresh();
        byId("reset-settings").focus();
      }, "reset-settings"),
    ),
    el("h3", {}, "Conversations"),
    el("p.hint", {}, "They are kept in this browser, and nowhere else."),
    el("div.buttons", {}, button("Export all", () => exportAll(app)), button("Import …", () => importFile(app))),
    el("h3", {}, "Server"),
    el(
      "div.buttons",
      {},
      button(key() ? "Change the API key" : "API key", () => app.askKey()),
      el("a.quiet", { href: "/docs", target: "_blank", rel: "noopener" }, "API"),
      button("Shortcuts", () => byId("shortcuts").showModal()),
    ),
  );
}

const button = (text, onclick, id = null) => el("button.quiet", { type: "button", id, onclick }, text);

function slider([name, label, about, least, most, step, rest], settings, change, model) {
  const normal = name === "temperature" ? (model?.default_model_temperature ?? 0) : rest;
  const bounds = { min: least, max: most, step };
  const range = el("input", { type: "range", ...bounds, "aria-label": label });
  const number = el("input", { type: "number", ...bounds, placeholder: normal, "aria-label": label });
  const reset = el("button.link", { type: "button", "aria-label": `${label}: back to the default` }, "default");
  const show = () => {
    const value = settings[name];
    number.value = value ?? "";
    range.value = value ?? normal;
    reset.hidden = value == null;
  };
  const set = (value) => {
    const fits = value === null || (Number.isFinite(value) && value >= least && value <= most);
    if (fits) change(name, value);
    show();
  };
  range.addEventListener("input", () => set(Number(range.value)));
  number.addEventListener("change", () => set(number.value === "" ? null : Number(number.value)));
  reset.addEventListener("click", () => {
    set(null);
    number.focus();
  });
  show();
  return el(
    "div.slider",
    { title: about },
    el("div.line", {}, el("span.name", {}, label), reset, number),
    range,
  );
}

function whole(name, label, placeholder, settings, change, least) {
  const number = el("input", { type: "number", min: least, step: 1, placeholder, "aria-label": label });
  number.value = settings[name] ?? "";
  number.addEventListener("change", () => {
    const value = number.value === "" ? null : Math.max(least, Math.round(Number(number.value)));
    number.value = value ?? "";
    change(name, value);
  });
  return el("label.line", {}, el("span.name", {}, label), number);
}
