/** The API key of a service that requires one, stored until the tab is closed. */

const NAME = "reeltalk-key";

export const recall = () => sessionStorage.getItem(NAME);
export const headers = () => (recall() ? { Authorization: `Bearer ${recall()}` } : {});

/** Reports that a request was refused for lack of a valid key, so that the page asks for one. */
export const refused = () => dispatchEvent(new Event("keyrefused"));

/**
 * Shows the field for a key whenever the service requires one; `onKey` is called after the user has entered it.
 *
 * @param {() => void} onKey
 */
export function askWhenRefused(onKey) {
  const form = document.getElementById("key-form");
  const field = document.getElementById("key");
  const wrong = document.getElementById("key-wrong");
  addEventListener("keyrefused", () => {
    if (!form.hidden) return; // several requests may be refused together
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
