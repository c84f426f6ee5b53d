/** The API key, for a service that asks for one: kept in this tab alone, and gone with it. */

const NAME = "reeltalk-key";

export const recall = () => sessionStorage.getItem(NAME);
export const headers = () => (recall() ? { Authorization: `Bearer ${recall()}` } : {});

/**
 * Shows the field for a key; `onKey` is called when one was typed.
 *
 * @param {() => void} onKey
 */
export function ask(onKey) {
  const form = document.getElementById("key-form");
  form.hidden = false;
  form.onsubmit = (event) => {
    event.preventDefault();
    const field = document.getElementById("key");
    const typed = field.value.trim();
    if (!typed) return;
    sessionStorage.setItem(NAME, typed);
    field.value = "";
    form.hidden = true;
    onKey();
  };
}
