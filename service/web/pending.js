/** The id of the running answer of each session, stored so that a reload can resume it. */

import * as storage from "./storage.js";

const name = (sessionId) => `pending:${sessionId}`;

/** @param {{answerId: string, question: string}} answer */
export const remember = (sessionId, answer) => storage.keep(name(sessionId), answer);

/** @returns {{answerId: string, question: string} | null} */
export const recall = (sessionId) => storage.recall(name(sessionId));

/** Forgets the answer, unless the session waits for a newer one. */
export function forget(sessionId, answerId = null) {
  if (answerId === null || recall(sessionId)?.answerId === answerId) storage.forget(name(sessionId));
}
