/** Announces changes of the page to screen readers, in whole sentences. */

const SENTENCE = /^[\s\S]*[.!?…](?=\s)/u;
const MIN_LENGTH = 60; // characters; shorter sentences are announced together with the next one
const MAX_LINES = 8; // lines; screen readers have read the earlier ones

/** @param {string} words */
export function announce(words) {
  const region = document.getElementById("announcer");
  const line = document.createElement("p");
  line.textContent = words;
  region.append(line);
  while (region.children.length > MAX_LINES) region.firstElementChild.remove();
}

/** Announces an answer while it is streamed. */
export function createReading() {
  let pending = "Answer: ";
  return {
    append(piece) {
      pending += piece;
      const whole = SENTENCE.exec(pending)?.[0] ?? "";
      if (whole.length < MIN_LENGTH) return;
      announce(whole);
      pending = pending.slice(whole.length);
    },

    /** @param {string} ending the text to announce after the last word */
    end(ending = "") {
      if ((pending + ending).trim()) announce(pending + ending);
      pending = "";
    },
  };
}
