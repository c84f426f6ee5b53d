/** One turn of the conversation on the page: the question, the answer while it is streamed, and how it ended. */

import { showProblem } from "./problem.js";
import { answerFigures, moments, namedMoments } from "./wording.js";

const STAGES = { decode: "Reading the video's frames …", encode: "Encoding the video's frames …", ready: "Thinking …" };

/** @param {{clip: import("./clip.js").Clip | null}} options the clip whose player the times in the answer control */
export function createTurn(question, { clip }) {
  const element = document.querySelector("#turn-template").content.cloneNode(true).firstElementChild;
  const [asked, answer, state, figures, problem] = [".asked", ".answer", ".state", ".figures", ".problem"]
    .map((selector) => element.querySelector(selector));
  const text = document.createTextNode("");
  asked.textContent = question;
  answer.append(text);

  function begin(words) {
    answer.setAttribute("aria-busy", "true");
    state.textContent = words;
  }

  function append(piece) {
    state.textContent = "";
    text.appendData(piece);
  }

  function end() {
    answer.removeAttribute("aria-busy");
    state.textContent = "";
  }

  return {
    element,
    begin,
    append,

    showProgress(stage) {
      if (!text.data) state.textContent = STAGES[stage] ?? "";
    },

    showLost() {
      state.textContent = "Connection lost, reconnecting …";
    },

    /** @param {object} message the fields of a `done` event or of an assistant's message */
    finish(message, whole) {
      end();
      if (whole && clip) answer.replaceChildren(...withMoments(whole, message.moments, clip));
      else if (whole) answer.textContent = whole;
      figures.textContent = answerFigures(message);
      figures.hidden = figures.textContent === "";
    },

    fail(error, remedy) {
      end();
      problem.setAttribute("role", "alert");
      showProblem(problem, error, remedy);
    },
  };
}

/**
 * The text, with a button for each time in it that moves the player there.
 *
 * @param {object[] | null | undefined} named the moments of the service, if the model has a time axis; such a model
 *   does not write seconds
 */
function* withMoments(text, named, clip) {
  let after = 0;
  for (const [start, end, seconds, label] of named ? namedMoments(text, named) : moments(text)) {
    if (!clip.hasMoment(seconds)) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "moment";
    button.textContent = text.slice(start, end);
    button.title = "Go to this time in the player";
    if (label) {
      button.dataset.time = label; // shown after the text by the style sheet, so that a copied answer keeps its text
      button.setAttribute("aria-label", `${button.textContent}: ${label}`);
    }
    button.onclick = () => clip.seek(seconds);
    yield text.slice(after, start);
    yield button;
    after = end;
  }
  yield text.slice(after);
}
