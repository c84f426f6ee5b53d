/** The answer that a session waits for, kept beyond a reload. The service knows the answer, this is its name. */

const key = (sessionId) => `reeltalk:pending:${sessionId}`;

/** @param {{answerId: string, question: string}} answer */
export function remember(sessionId, answer) {
  attempt(() => localStorage.setItem(key(sessionId), JSON.stringify(answer)));
}

/** @returns {{answerId: string, question: string} | null} */
export function recall(sessionId) {
  return attempt(() => JSON.parse(localStorage.getItem(key(sessionId))));
}

export function forget(sessionId) {
  attempt(() => localStorage.removeItem(key(sessionId)));
}

/** A browser may refuse to store anything; then a reload in mid-answer shows the answer once it has ended. */
function attempt(action) {
  try {
    return action() ?? null;
  } catch {
    return null;
  }
}
