/** Says aloud, through a screen reader, what eyes see happen: whole sentences, never word by word. */

const SENTENCE = /^[\s\S]*[.!?…](?=\s)/u;
const LONG_ENOUGH = 60; // characters; shorter sentences wait for the next one
const KEPT = 8; // lines; a screen reader has read the earlier ones

/** @param {string} words */
export function say(words) {
  const region = document.getElementById("announcer");
  const line = document.createElement("p");
  line.textContent = words;
  region.append(line);
  while (region.children.length > KEPT) region.firstElementChild.remove();
}

/** An answer read out while it is written. */
export function createReading() {
  let unsaid = "Answer: ";
  return {
    append(piece) {
      unsaid += piece;
      const whole = SENTENCE.exec(unsaid)?.[0] ?? "";
      if (whole.length < LONG_ENOUGH) return;
      say(whole);
      unsaid = unsaid.slice(whole.length);
    },

    /** @param {string} ending what to say after the last word */
    end(ending = "") {
      if ((unsaid + ending).trim()) say(unsaid + ending);
      unsaid = "";
    },
  };
}
