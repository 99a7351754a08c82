// Shortcuts of the whole page.

import { byId } from "./dom.js";

export function listenToKeys(app) {
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || document.querySelector("dialog[open]")) return;
    const act = withModifier(event, app) ?? bare(event, app);
    if (!act) return;
    event.preventDefault();
    act();
  });
}

function withModifier(event, app) {
  if (!(event.metaKey || event.ctrlKey) || event.altKey) return null;
  const name = `${event.shiftKey ? "shift " : ""}${event.key.toLowerCase()}`;
  return {
    "shift o": () => app.fresh(),
    "shift e": () => app.model?.experts && app.panel.toggle("experts"),
    k: () => {
      if (document.documentElement.classList.contains("drawer")) app.sidebar.slide(true);
      byId("search").focus();
    },
    ",": () => app.panel.toggle("settings"),
  }[name];
}

function bare(event, app) {
  if (event.metaKey || event.ctrlKey || event.altKey) return null;
  if (event.key === "Escape") {
    if (app.answering) return () => app.stop();
    if (app.sidebar.isOpen) return () => app.sidebar.slide(false);
    if (app.panel.coversAll) return () => app.panel.close();
    return null;
  }
  if (event.target.closest("input, textarea, select, [contenteditable]")) return null;
  return {
    "/": () => byId("draft").focus(),
    "?": () => byId("shortcuts").showModal(),
  }[event.key];
}
