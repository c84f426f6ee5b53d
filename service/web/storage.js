/** Stores values across reloads. If the browser refuses to store them, they last as long as the page. */

const PREFIX = "reeltalk:";
const fallback = new Map();

/** @returns {any} the value stored under this name, or null */
export function recall(name) {
  if (fallback.has(name)) return fallback.get(name);
  try {
    return JSON.parse(localStorage.getItem(PREFIX + name));
  } catch {
    return null;
  }
}

export function keep(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
    fallback.delete(name);
  } catch {
    fallback.set(name, value);
  }
}

export function forget(name) {
  fallback.delete(name);
  try {
    localStorage.removeItem(PREFIX + name);
  } catch { /* nothing was stored */ }
}
