// A small menu at a button.

import { el } from "./dom.js";

/** Opens `items` [label, act, class?] at a button, until one is chosen or something else is done. */
export function openMenu(button, items) {
  document.querySelector(".menu")?.remove();
  const menu = el("div.menu", { role: "menu", popover: "auto" });
  const close = () => menu.hidePopover();
  const entries = items.map(([label, act, kind]) => {
    const choose = () => {
      close();
      act();
    };
    return el("button", { type: "button", role: "menuitem", class: kind, onclick: choose }, label);
  });
  menu.append(...entries);
  button.closest("nav, main, aside").append(menu);
  menu.addEventListener("toggle", (event) => {
    if (event.newState === "open") return;
    if (menu.contains(document.activeElement)) button.focus();
    menu.remove();
  });
  menu.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const at = entries.indexOf(document.activeElement);
    entries[(at + step + entries.length) % entries.length].focus();
  });
  menu.showPopover();
  const box = button.getBoundingClientRect();
  const left = Math.min(box.left, innerWidth - menu.offsetWidth - 8);
  const below = box.bottom + 4 + menu.offsetHeight < innerHeight;
  menu.style.left = `${Math.max(8, left)}px`;
  menu.style.top = `${below ? box.bottom + 4 : box.top - menu.offsetHeight - 4}px`;
  entries[0].focus();
}
