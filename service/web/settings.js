/** How answers are drawn: the fields under the composer, kept beyond a reload. An empty field leaves it to the service. */

const NAME = "reeltalk:settings";

const panel = document.getElementById("settings");
const fields = [...panel.querySelectorAll("input")];

/** @returns {Record<string, number>} what is to be sent with a question */
export function chosen() {
  return Object.fromEntries(fields.filter((field) => field.value !== "").map((field) => [field.name, field.valueAsNumber]));
}

function restore() {
  let kept = {};
  try {
    kept = JSON.parse(localStorage.getItem(NAME)) ?? {};
  } catch { /* a browser may refuse to store anything */ }
  for (const field of fields) field.value = kept[field.name] ?? "";
  mark();
}

function keep() {
  try {
    localStorage.setItem(NAME, JSON.stringify(chosen()));
  } catch { /* then they last as long as the page */ }
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
