// Which tab answers a conversation. A tab that is closed gives its locks back.

const name = (id) => `answering ${id}`;
const awaited = new Set();

/** Does something while this tab is the one that answers. */
export function holding(id, act) {
  return navigator.locks ? navigator.locks.request(name(id), act) : act();
}

/** Whether no tab answers; else `then` is called once none does any more. */
export async function whenFree(id, then) {
  // Without locks (on plain HTTP from another machine) there is no telling.
  if (!navigator.locks) return true;
  const { held } = await navigator.locks.query();
  if (!held.some((lock) => lock.name === name(id))) return true;
  if (!awaited.has(id)) {
    awaited.add(id);
    navigator.locks.request(name(id), () => awaited.delete(id)).then(then);
  }
  return false;
}
