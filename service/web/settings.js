/** The sampling parameters under the composer, stored across reloads. An empty field means the service's default. */

import * as storage from "./storage.js";

const panel = document.getElementById("settings");
const fields = [...panel.querySelectorAll("input")];

/** @returns {Record<string, number>} the parameters to send with a question */
export function chosen() {
  return Object.fromEntries(fields.filter((field) => field.value !== "").map((field) => [field.name, field.valueAsNumber]));
}

function restore() {
  const kept = storage.recall("settings") ?? {};
  for (const field of fields) field.value = kept[field.name] ?? "";
  mark();
}

function keep() {
  storage.keep("settings", chosen());
  mark();
}

function mark() {
  const count = Object.keys(chosen()).length;
  panel.querySelector(".count").textContent = count ? ` (${count} set)` : "";
}

panel.addEventListener("input", keep);
panel.addEventListener("invalid", () => { panel.open = true; }, true); // open the panel, so that the browser can show the error
panel.querySelector("button").addEventListener("click", () => {
  for (const field of fields) field.value = "";
  keep();
});
restore();
