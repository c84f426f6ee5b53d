/** What conversations are called in the side bar: by their first questions. */

import * as storage from "./storage.js";

const LONGEST = 80;
const name = (sessionId) => `title:${sessionId}`;

/** @returns {string | null} null for a conversation that this browser has not seen yet */
export const recall = (sessionId) => storage.recall(name(sessionId));

export const forget = (sessionId) => storage.forget(name(sessionId));

/** Keeps the first question. @returns {boolean} whether this is news */
export function remember(sessionId, question) {
  if (recall(sessionId)) return false;
  storage.keep(name(sessionId), question.slice(0, LONGEST));
  return true;
}
