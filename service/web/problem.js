/** Shows an error where it occurred, with a button for a remedy if there is one. */

import { explain } from "./wording.js";

/**
 * @param {HTMLElement} element an empty `.problem`
 * @param {Error} error
 * @param {{label: string, action: () => void} | null} [remedy]
 */
export function showProblem(element, error, remedy = null) {
  const { title, detail } = explain(error);
  const bold = document.createElement("b");
  bold.textContent = title;
  element.replaceChildren(bold, ` ${detail} `);
  if (remedy) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "link";
    button.textContent = remedy.label;
    button.onclick = remedy.action;
    element.append(button);
  }
  element.hidden = false;
}
