// What the browser remembers for this page, where it does: some forbid it.

const store = (name) => {
  try {
    return window[name];
  } catch {
    return null;
  }
};
const lasting = store("localStorage");
const passing = store("sessionStorage");

/** What was remembered by a name, of this tab or for good; null: nothing. */
export const remembered = (name) => passing?.getItem(name) ?? lasting?.getItem(name) ?? null;

/** Whether it is remembered for good. */
export const isKept = (name) => lasting?.getItem(name) != null;

/** Remembers a text, or with null forgets it; `forGood`, or as long as the tab is open. */
export function remember(name, text, forGood = true) {
  passing?.removeItem(name);
  lasting?.removeItem(name);
  if (text == null) return;
  try {
    (forGood ? lasting : passing)?.setItem(name, text);
  } catch {
    // There is no room: the page goes on without.
  }
}
