/** The models that are served, and the one that new conversations use; the header has a choice if there are several. */

import * as api from "./api.js";
import * as storage from "./storage.js";

const NAME = "model";
const RELOAD = 5_000; // ms until a model that is being loaded is looked at again

/** Whether conversations with a model are about videos. A model that is not known is assumed to see them. */
export const seesVideos = (model) => model?.modalities?.includes("video") ?? true;

const isReady = (model) => (model.state ?? "ready") === "ready";

/** @param {{onChange: () => void}} options `onChange` is called when the models are known, and after each choice */
export function createModels({ onChange }) {
  const [single, choice, select] = ["model", "model-choice", "model-select"].map((id) => document.getElementById(id));
  let served = [];
  let drawn = ""; // a fingerprint of the options on the page
  let timer = null;
  let loading = load();

  select.onchange = () => {
    storage.keep(NAME, select.value);
    onChange();
  };
  document.addEventListener("visibilitychange", () => document.hidden || reload());

  async function load() {
    clearTimeout(timer);
    try {
      served = await api.models();
    } catch {
      return; // the page also works without the names of the models
    }
    if (served.some((model) => model.state === "loading")) timer = setTimeout(reload, RELOAD);
    show();
    onChange();
  }

  function reload() {
    loading = load();
    return loading;
  }

  function show() {
    choice.hidden = served.length < 2;
    single.hidden = served.length !== 1;
    single.querySelector("b").textContent = served[0]?.id ?? "";
    const wanted = JSON.stringify(served.map(({ id, state }) => [id, state]));
    if (wanted !== drawn) draw(); // unchanged options are not redrawn, because that would close the open list
    drawn = wanted;
  }

  function draw() {
    const usable = served.filter((model) => model.state !== "broken");
    const kept = usable.find((model) => model.id === storage.recall(NAME));
    const taken = kept ?? usable.find((model) => model.is_default) ?? usable[0];
    select.replaceChildren(...served.map((model) => option(model, model === taken)));
  }

  return {
    reload,

    /** The model that new conversations use; null if none is known or all are broken. */
    chosen: () => served.find((model) => model.id === select.value) ?? null,

    /**
     * How the frames that a model sees can be shown, once the list is loaded: `name` selects them in requests and is null
     * for the default model, whose frames the service has pictures of.
     */
    async framesOf(id) {
      await loading;
      const model = served.find((one) => one.id === id);
      if (served.length < 2 || model?.is_default) return { name: null, areKnown: true, havePictures: true };
      const areKnown = model !== undefined && isReady(model);
      return { name: areKnown ? id : null, areKnown, havePictures: false };
    },

    /** The model with this name; null if it is not served. */
    get: (id) => served.find((model) => model.id === id) ?? null,

    /** Whether a conversation must name its model. */
    areSeveral: () => served.length > 1,
  };
}

function option(model, isSelected) {
  const label = isReady(model) ? model.id : `${model.id} (${model.state})`;
  const element = new Option(label, model.id, isSelected, isSelected);
  element.disabled = model.state === "broken";
  return element;
}
