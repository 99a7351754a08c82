// Elements, made without any HTML text: what a model writes can never become markup.

import { icon } from "./icons.js";

/**
 * An element: el("button.icon", { type: "button", onclick: f }, "text", child).
 * What is null or false among properties and children is left out.
 */
export function el(name, properties = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties)) {
    if (value == null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child != null && child !== false));
  return node;
}

/** A button that shows an icon, and says in words what it does. */
export function iconButton(name, label, onclick, properties = {}) {
  return el(
    "button.icon",
    { type: "button", "aria-label": label, title: label, onclick, ...properties },
    icon(name),
  );
}

export const byId = (id) => document.getElementById(id);

/** A text for screen readers, said once. */
export function say(text) {
  byId("spoken").textContent = text;
}

/** A short message at the edge, with a button if something can be done about it. */
export function toast(text, action, act) {
  const node = el("div.toast", {}, el("span", {}, text));
  const leave = () => node.remove();
  if (action) {
    const press = () => {
      leave();
      act();
    };
    node.append(el("button", { type: "button", onclick: press }, action));
  }
  byId("toasts").append(node);
  setTimeout(leave, action ? 8000 : 4000);
}

/** Puts a text on the clipboard and shows on its button that it is there. */
export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // There is no clipboard on plain HTTP from another machine, but the older way.
    if (!copySelected(text)) {
      toast("The browser does not let this page use the clipboard.");
      return;
    }
  }
  const before = [...button.childNodes];
  button.replaceChildren(icon("check"));
  say("Copied");
  setTimeout(() => button.replaceChildren(...before), 1400);
}

function copySelected(text) {
  const focused = document.activeElement;
  const field = el("textarea", { class: "unseen", readonly: true });
  field.value = text;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  focused?.focus();
  return done;
}

/** 12345.6 as "12,346". */
export const count = (number) => Math.round(number).toLocaleString("en");

/** 0.256 as "26 %". */
export const percent = (share) => `${Math.round(share * 100)} %`;
