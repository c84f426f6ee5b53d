/** The answer that a session waits for, kept beyond a reload. The service knows the answer, this is its name. */

import * as storage from "./storage.js";

const name = (sessionId) => `pending:${sessionId}`;

/** @param {{answerId: string, question: string}} answer */
export const remember = (sessionId, answer) => storage.keep(name(sessionId), answer);

/** @returns {{answerId: string, question: string} | null} */
export const recall = (sessionId) => storage.recall(name(sessionId));

/** Forgets the answer, unless the session waits for another one by now. */
export function forget(sessionId, answerId = null) {
  if (answerId === null || recall(sessionId)?.answerId === answerId) storage.forget(name(sessionId));
}
