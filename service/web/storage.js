/** What the page keeps beyond a reload. A browser may refuse to store anything; then it lasts as long as the page. */

const PREFIX = "reeltalk:";
const meanwhile = new Map();

/** @returns {any} what was kept under this name; null when there is nothing */
export function recall(name) {
  if (meanwhile.has(name)) return meanwhile.get(name);
  try {
    return JSON.parse(localStorage.getItem(PREFIX + name));
  } catch {
    return null;
  }
}

export function keep(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
    meanwhile.delete(name);
  } catch {
    meanwhile.set(name, value);
  }
}

export function forget(name) {
  meanwhile.delete(name);
  try {
    localStorage.removeItem(PREFIX + name);
  } catch { /* nothing was stored */ }
}
