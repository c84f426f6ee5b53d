/** Questions and answers of one session: asking, streaming, stopping, and coming back to an answer that still runs. */

import { createReading, say } from "./announcer.js";
import * as api from "./api.js";
import * as pending from "./pending.js";
import { showProblem } from "./problem.js";
import * as settings from "./settings.js";
import { createTurn } from "./turn.js";

const readings = new Map(); // session to what lets go of the stream of its answer

/**
 * Takes over the page's composer until `signal` aborts.
 *
 * @param {object} options
 * @param {AbortSignal} options.signal
 * @param {import("./clip.js").Clip} options.clip the one whose player the times in answers move
 * @param {(sessionId: string, question: string) => void} options.onNamed tells the first question
 * @param {() => void} options.onGone the session has been deleted meanwhile
 */
export function createConversation({ signal, clip, onNamed, onGone }) {
  const [log, scroller, opening, composer, field, send, stop, refusal] =
    ["log", "scroller", "opening", "composer", "question", "send", "stop", "refusal"]
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

  /**
   * Begins: shows the turns there are, and goes on reading an answer that was left in the middle, here or elsewhere.
   * @param {{answerId: string, question: string} | null} running what the service says is being answered
   */
  function open(id, messages = [], running = null) {
    sessionId = id;
    begin();
    const questions = messages.filter((message) => message.role === "user");
    for (const question of questions) {
      const answer = messages.find((m) => m.role === "assistant" && m.answer_id === question.answer_id);
      addTurn(question.content).finish(answer ?? {}, answer?.content ?? "");
    }
    const left = pending.recall(id) ?? running;
    if (questions.length) onNamed(id, questions[0].content);
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
    const reading = beginReading();
    try {
      const reply = await api.ask(sessionId, question, settings.chosen(), reading);
      onNamed(sessionId, question);
      await listen(turn, { question, reply, reading });
      answering = null;
      if (!signal.aborted) update();
    } catch (error) {
      if (signal.aborted || reading.aborted) return;
      asked.withdraw(); // refused: nothing of it is in the session, so nothing of it stays here
      refuse(error);
    }
  }

  function refuse(error) {
    const isGone = error.status === 404;
    showProblem(refusal, error, isGone ? { label: "Back to the start", action: onGone } : null);
    if (isGone) say("This conversation has been deleted.");
  }

  /**
   * An answer goes on while another conversation is looked at, so its stream has a signal of its own: the service stops
   * answers that nobody reads. Whoever comes back reads it in their turn.
   */
  function beginReading() {
    readings.get(sessionId)?.abort();
    const controller = new AbortController();
    readings.set(sessionId, controller);
    return controller.signal;
  }

  function goOn({ answerId, question }) {
    answering = { id: answerId, isStopping: false };
    const turn = addTurn(question);
    turn.begin("Thinking …");
    const ended = listen(turn, { question, id: answerId, reading: beginReading() }).finally(() => {
      answering = null;
      if (!signal.aborted) update();
    });
    ended.catch(() => {}); // only an aborted reading comes through, and then nobody waits
  }

  /** Shows an answer's events until it ends; whatever happens to it is shown in its turn. */
  async function listen(turn, { question, reading, reply = null, id = null }) {
    const aloud = createReading();
    let text = "";
    try {
      for await (const { name, data } of api.followAnswer({ id, reply, signal: reading, onLost: turn.showLost })) {
        if (name === "answer") named(data.id, question);
        else if (name === "progress") turn.showProgress(data.stage);
        else if (name === "delta") {
          text += data.text;
          follow(() => turn.append(data.text));
          if (!signal.aborted) aloud.append(data.text);
        } else if (name === "done") {
          follow(() => turn.finish(data, text));
          if (!signal.aborted) aloud.end(data.finish_reason === "abort" ? " Stopped." : "");
        } else if (name === "error") throw api.eventError(data);
      }
    } catch (error) {
      if (reading.aborted) throw error; // kept as pending: it may be gone on with
      const remedy = error.status === 404 || error.status === 410 ? null : { label: "Ask again", action: () => askAgain(turn, question) };
      follow(() => turn.fail(error, remedy));
    }
    pending.forget(sessionId, answering.id);
    readings.delete(sessionId);
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
    if (answering.isStopping) return;
    answering.isStopping = true;
    update();
    if (answering.id) cancel(); // else as soon as the answer has a name
  }

  async function cancel() {
    try {
      await api.cancelAnswer(answering.id, signal);
      say("Stopping.");
    } catch (error) {
      if (signal.aborted || !answering) return;
      answering.isStopping = false;
      update();
      refuse(error);
    }
  }

  function addTurn(question) {
    const turn = createTurn(question, { clip });
    log.append(turn.element);
    return turn;
  }

  /** Changes the log; a reader at its end stays there, one who has scrolled up is left in peace. */
  function follow(change) {
    if (signal.aborted) return change(); // nobody looks at this one any more
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
