/** The titles of conversations in the sidebar: their first questions. */

import * as storage from "./storage.js";

const MAX_LENGTH = 80;
const name = (sessionId) => `title:${sessionId}`;

/** @returns {string | null} null for a conversation that this browser has not shown yet */
export const recall = (sessionId) => storage.recall(name(sessionId));

export const forget = (sessionId) => storage.forget(name(sessionId));

/** Stores the first question. @returns {boolean} whether there was no title before */
export function remember(sessionId, question) {
  if (recall(sessionId)) return false;
  storage.keep(name(sessionId), question.slice(0, MAX_LENGTH));
  return true;
}
