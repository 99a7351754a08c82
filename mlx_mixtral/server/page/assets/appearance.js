// Light, dark, or as the system has it.

import { byId, el } from "./dom.js";
import { icon } from "./icons.js";
import { remember } from "./remember.js";

const KEPT = "theme";
const CHOICES = [
  ["auto", "auto", "As the system"],
  ["light", "sun", "Light"],
  ["dark", "moon", "Dark"],
];

/** Makes the switch; `changed` is called after it was used, or the system changed. */
export function makeThemes(changed) {
  const chosen = () => document.documentElement.dataset.theme ?? "auto";
  const buttons = CHOICES.map(([name, glyph, label]) => {
    const choose = () => {
      if (name === "auto") {
        remember(KEPT, null);
        delete document.documentElement.dataset.theme;
      } else {
        remember(KEPT, name);
        document.documentElement.dataset.theme = name;
      }
      show();
      changed();
    };
    const given = { type: "button", role: "radio", "aria-label": label, title: label, onclick: choose, "data-theme-name": name };
    return el("button.icon", given, icon(glyph));
  });
  const show = () => {
    for (const button of buttons) {
      const on = button.dataset.themeName === chosen();
      button.setAttribute("aria-checked", String(on));
      button.tabIndex = on ? 0 : -1;
    }
  };
  byId("themes").append(...buttons);
  byId("themes").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = buttons[(buttons.indexOf(event.target) + step + buttons.length) % buttons.length];
    next.click();
    next.focus();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  show();
}
