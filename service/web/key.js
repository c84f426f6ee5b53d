/** The API key, for a service that asks for one: kept in this tab alone, and gone with it. */

const NAME = "reeltalk-key";

export const recall = () => sessionStorage.getItem(NAME);
export const headers = () => (recall() ? { Authorization: `Bearer ${recall()}` } : {});

/** A request was refused for want of a key that is valid: the page is to ask for one. */
export const refused = () => dispatchEvent(new Event("keyrefused"));

/**
 * Shows the field for a key whenever the service asks for one; `onKey` is called when one was typed.
 *
 * @param {() => void} onKey
 */
export function askWhenRefused(onKey) {
  const form = document.getElementById("key-form");
  const field = document.getElementById("key");
  const wrong = document.getElementById("key-wrong");
  addEventListener("keyrefused", () => {
    if (!form.hidden) return; // several requests are refused at once
    wrong.hidden = !recall();
    form.hidden = false;
    field.focus();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const typed = field.value.trim();
    if (!typed) return;
    sessionStorage.setItem(NAME, typed);
    field.value = "";
    form.hidden = true;
    onKey();
  });
}
