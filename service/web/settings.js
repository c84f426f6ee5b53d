/** How answers are drawn: the fields under the composer, kept beyond a reload. An empty field leaves it to the service. */

import * as storage from "./storage.js";

const panel = document.getElementById("settings");
const fields = [...panel.querySelectorAll("input")];

/** @returns {Record<string, number>} what is to be sent with a question */
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
panel.addEventListener("invalid", () => { panel.open = true; }, true); // a closed field cannot say what is wrong
panel.querySelector("button").addEventListener("click", () => {
  for (const field of fields) field.value = "";
  keep();
});
restore();
