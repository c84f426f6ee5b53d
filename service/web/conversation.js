/** Questions and answers of one session: asking, streaming, stopping, and coming back to an answer that still runs. */

import * as api from "./api.js";
import * as pending from "./pending.js";
import { showProblem } from "./problem.js";
import * as settings from "./settings.js";
import { createTurn } from "./turn.js";

/**
 * Takes over the page's composer until `signal` aborts.
 *
 * @param {{signal: AbortSignal, onSeek: (seconds: number) => void}} options
 */
export function createConversation({ signal, onSeek }) {
  const [log, scroller, opening, composer, field, send, stop, refusal, announcer] =
    ["log", "scroller", "opening", "composer", "question", "send", "stop", "refusal", "announcer"]
      .map((id) => document.getElementById(id));
  const hasKeyboard = matchMedia("(pointer: fine)").matches; // else a focus would throw up the screen's keyboard
  let sessionId = null;
  let begin; // the session is there
  const begun = new Promise((resolve) => { begin = resolve; });
  let answering = null; // {id, isStopping} while an answer is asked for or given

  field.value = "";
  refusal.hidden = true;
  opening.hidden = false;
  update();

  const on = (target, name, listener) => target.addEventListener(name, listener, { signal });
  on(composer, "submit", () => ask(field.value));
  on(stop, "click", stopAnswer);
  on(document, "keydown", (event) => {
    if (event.key === "Escape" && !event.defaultPrevented && !event.isComposing && !stop.disabled) stopAnswer();
  });
  on(field, "input", update);
  on(field, "keydown", (event) => {
    // While a word is composed (Japanese, Chinese …), Enter belongs to the composition.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    composer.requestSubmit();
  });
  for (const suggestion of opening.querySelectorAll("button")) {
    on(suggestion, "click", () => ask(suggestion.textContent));
  }

  /** Begins: shows the turns there are, and goes on reading an answer that was left in the middle. */
  function open(id, messages = []) {
    sessionId = id;
    begin();
    const questions = messages.filter((message) => message.role === "user");
    for (const question of questions) {
      const answer = messages.find((m) => m.role === "assistant" && m.answer_id === question.answer_id);
      addTurn(question.content).finish(answer ?? {}, answer?.content ?? "");
    }
    const left = pending.recall(id);
    if (left && messages.some((message) => message.answer_id === left.answerId)) pending.forget(id);
    else if (left) goOn(left);
    opening.hidden = log.children.length > 0;
    update();
    toEnd();
    if (hasKeyboard) field.focus({ preventScroll: true });
  }

  /** A question asked before the upload is through is shown at once, and sent as soon as it can be. */
  async function ask(text) {
    const question = text.trim();
    if (!question || answering) return;
    const asked = { id: null, isStopping: false };
    answering = asked;
    refusal.hidden = true;
    opening.hidden = true;
    const turn = addTurn(question);
    turn.begin(sessionId ? "Thinking …" : "Waiting for the upload …");
    field.value = "";
    update();
    toEnd();
    asked.withdraw = () => {
      turn.element.remove();
      opening.hidden = log.children.length > 0;
      if (!field.value) field.value = question; // no typed word is lost
      answering = null;
      update();
    };
    await begun;
    if (answering !== asked) return; // withdrawn meanwhile
    turn.begin("Thinking …");
    try {
      await listen(turn, { question, reply: await api.ask(sessionId, question, settings.chosen(), signal) });
      answering = null;
      update();
    } catch (error) {
      if (signal.aborted) return;
      asked.withdraw(); // refused: nothing of it is in the session, so nothing of it stays here
      showProblem(refusal, error);
    }
  }

  function goOn({ answerId, question }) {
    answering = { id: answerId, isStopping: false };
    const turn = addTurn(question);
    turn.begin("Thinking …");
    const ended = listen(turn, { question, id: answerId }).finally(() => {
      answering = null;
      if (!signal.aborted) update();
    });
    ended.catch(() => {}); // only an aborted signal comes through, and then nobody waits
  }

  /** Shows an answer's events until it ends; whatever happens to it is shown in its turn. */
  async function listen(turn, { question, reply = null, id = null }) {
    let text = "";
    try {
      for await (const { name, data } of api.followAnswer({ id, reply, signal, onLost: turn.showLost })) {
        if (name === "answer") named(data.id, question);
        else if (name === "progress") turn.showProgress(data.stage);
        else if (name === "delta") follow(() => turn.append(data.text), (text += data.text));
        else if (name === "done") follow(() => turn.finish(data, text));
        else if (name === "error") throw api.eventError(data);
      }
      announcer.textContent = `Answer: ${text || "stopped before the first word"}`;
    } catch (error) {
      if (signal.aborted) throw error; // kept as pending: it may be gone on with
      follow(() => turn.fail(error, () => askAgain(turn, question)));
    }
    pending.forget(sessionId);
  }

  function named(id, question) {
    answering.id = id;
    pending.remember(sessionId, { answerId: id, question });
    if (answering.isStopping) cancel();
  }

  function askAgain(turn, question) {
    if (answering) return;
    turn.element.remove();
    ask(question);
  }

  function stopAnswer() {
    if (!answering) return;
    if (!sessionId) return answering.withdraw();
    answering.isStopping = true;
    update();
    if (answering.id) cancel(); // else as soon as the answer has a name
  }

  async function cancel() {
    try {
      await api.cancelAnswer(answering.id, signal);
    } catch (error) {
      if (signal.aborted || !answering) return;
      answering.isStopping = false;
      update();
      showProblem(refusal, error);
    }
  }

  function addTurn(question) {
    const turn = createTurn(question, { onSeek });
    log.append(turn.element);
    return turn;
  }

  /** Changes the log; a reader at its end stays there, one who has scrolled up is left in peace. */
  function follow(change) {
    const isAtEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
    change();
    if (isAtEnd) toEnd();
  }

  function toEnd() {
    scroller.scrollTop = scroller.scrollHeight;
  }

  function update() {
    const focused = document.activeElement;
    send.hidden = answering !== null;
    stop.hidden = answering === null;
    stop.disabled = answering?.isStopping ?? false;
    send.disabled = !field.value.trim();
    if (hasKeyboard && focused?.hidden) field.focus(); // its button has just gone
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight}px`;
  }

  return { open };
}
