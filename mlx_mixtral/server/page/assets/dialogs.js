// What is asked and told in a window of its own.

import { KEY, key, setKey } from "./api.js";
import { byId, el } from "./dom.js";
import { isKept } from "./remember.js";

const isMac = /Mac|iPhone|iPad/.test(navigator.platform);
const MOD = isMac ? "⌘" : "Ctrl";

const SHORTCUTS = [
  ["Send", "Enter"],
  ["New line", "Shift", "Enter"],
  ["Stop the answer", "Esc"],
  ["Edit the last message", "↑"],
  ["New chat", MOD, "Shift", "O"],
  ["Search conversations", MOD, "K"],
  ["Experts", MOD, "Shift", "E"],
  ["Settings", MOD, ","],
  ["To the message field", "/"],
  ["These shortcuts", "?"],
];

/** Makes the window of shortcuts, which opens by its id. */
export function makeShortcuts() {
  const rows = SHORTCUTS.map(([what, ...keys]) =>
    el("div", {}, el("dt", {}, what), el("dd", {}, ...keys.map((name) => el("kbd", {}, name)))),
  );
  const dialog = windowOf("shortcuts", "Shortcuts", el("dl", {}, ...rows));
  document.body.append(dialog);
}

/** Asks for the API key; calls `then` once there is one. */
export function askKey(then) {
  byId("key")?.remove();
  const field = el("input", {
    type: "password", name: "key", autocomplete: "off", "aria-label": "API key", required: true,
  }); // prettier-ignore
  field.value = key() ?? "";
  const keep = el("input", { type: "checkbox", name: "keep", checked: isKept(KEY) });
  const form = el(
    "form",
    { method: "dialog" },
    el("p", {}, "This server was started with a key. It is sent with every request from this page, to this server alone."),
    field,
    el("label.check", {}, keep, " Keep it in this browser"),
    el("div.buttons", {}, el("button.solid", { type: "submit" }, "Use the key")),
  );
  const dialog = windowOf("key", "API key", form);
  // With method=dialog the policy form-action 'none' is not in the way, but a reload would be.
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    setKey(field.value.trim(), keep.checked);
    dialog.close();
    then?.();
  });
  document.body.append(dialog);
  dialog.showModal();
  field.focus();
}

function windowOf(id, title, content) {
  const dialog = el("dialog", { id, "aria-labelledby": `${id}-title` });
  const close = el("button.icon.close", { type: "button", "aria-label": "Close", onclick: () => dialog.close() }, "×");
  dialog.append(el("h2", { id: `${id}-title` }, title), close, content);
  dialog.addEventListener("pointerdown", ({ target, clientX, clientY }) => {
    const { left, right, top, bottom } = dialog.getBoundingClientRect();
    const outside = clientX < left || clientX > right || clientY < top || clientY > bottom;
    if (target === dialog && outside) dialog.close();
  });
  return dialog;
}
