/** The questions and answers of one session: asks, streams, stops, and resumes an answer that is still running. */

import { createReading, announce } from "./announcer.js";
import * as api from "./api.js";
import * as pending from "./pending.js";
import { showProblem } from "./problem.js";
import * as settings from "./settings.js";
import { createTurn } from "./turn.js";

const readings = new Map(); // from a session's id to the AbortController of its answer's stream

/**
 * Takes over the page's composer until `signal` aborts.
 *
 * @param {object} options
 * @param {AbortSignal} options.signal
 * @param {import("./clip.js").Clip | null} options.clip the clip whose player the times in answers control, if any
 * @param {(sessionId: string, question: string) => void} options.onNamed called with each question
 * @param {() => void} options.onDeletedElsewhere called to leave a session that has been deleted elsewhere
 */
export function createConversation({ signal, clip, onNamed, onDeletedElsewhere }) {
  const [log, scroller, opening, composer, field, send, stop, refusal] =
    ["log", "scroller", "opening", "composer", "question", "send", "stop", "refusal"]
      .map((id) => document.getElementById(id));
  const hasKeyboard = matchMedia("(pointer: fine)").matches; // on touch screens, focus would open the keyboard
  let sessionId = null;
  let begin; // resolves `begun` when the session exists
  const begun = new Promise((resolve) => { begin = resolve; });
  let answering = null; // {id, isStopping} while an answer is requested or streamed

  field.value = "";
  field.placeholder = clip ? "Ask about the video …" : "Ask …";
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
    // In an input method (Japanese, Chinese …), Enter completes the composition.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    composer.requestSubmit();
  });
  for (const suggestion of opening.querySelectorAll("button")) {
    on(suggestion, "click", () => ask(suggestion.textContent));
  }

  /**
   * Opens the session: shows its turns, and resumes reading an answer that is still running.
   * @param {{answerId: string, question: string} | null} running the running answer according to the service
   */
  function open(id, messages = [], running = null) {
    sessionId = id;
    begin();
    const questions = messages.filter((message) => message.role === "user");
    for (const question of questions) {
      const answer = messages.find((m) => m.role === "assistant" && m.answer_id === question.answer_id);
      addTurn(question.content).finish(answer ?? {}, answer?.content ?? "");
      clip?.showAnswered(answer?.frames);
    }
    const left = pending.recall(id) ?? running;
    if (questions.length) onNamed(id, questions[0].content);
    if (left && messages.some((message) => message.answer_id === left.answerId)) pending.forget(id);
    else if (left) resumeAnswer(left);
    opening.hidden = log.children.length > 0;
    update();
    toEnd();
    if (hasKeyboard) field.focus({ preventScroll: true });
  }

  /** Asks a question. One asked before the upload is complete is shown at once, and sent afterwards. */
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
      if (!field.value) field.value = question; // give the question back to the user
      answering = null;
      update();
    };
    await begun;
    if (answering !== asked) return; // the user has withdrawn the question
    turn.begin("Thinking …");
    const reading = beginReading();
    try {
      const reply = await api.ask(sessionId, question, settings.chosen(), reading);
      onNamed(sessionId, question);
      await readAnswer(turn, { question, reply, reading });
      answering = null;
      if (!signal.aborted) update();
    } catch (error) {
      if (signal.aborted || reading.aborted) return;
      asked.withdraw(); // the question was refused and is not part of the session
      refuse(error);
    }
  }

  function refuse(error) {
    const isGone = error.status === 404;
    showProblem(refusal, error, isGone ? { label: "Back to the start", action: onDeletedElsewhere } : null);
    if (isGone) announce("This conversation has been deleted.");
  }

  /**
   * Creates the signal of an answer's stream. The stream continues while the user looks at another conversation, because
   * the service stops answers without readers.
   */
  function beginReading() {
    readings.get(sessionId)?.abort();
    const controller = new AbortController();
    readings.set(sessionId, controller);
    return controller.signal;
  }

  function resumeAnswer({ answerId, question }) {
    answering = { id: answerId, isStopping: false };
    const turn = addTurn(question);
    turn.begin("Thinking …");
    const ended = readAnswer(turn, { question, id: answerId, reading: beginReading() }).finally(() => {
      answering = null;
      if (!signal.aborted) update();
    });
    ended.catch(() => {}); // rejects only when the stream is aborted
  }

  /** Shows the events of an answer, and its error if it fails, in its turn. */
  async function readAnswer(turn, { question, reading, reply = null, id = null }) {
    const aloud = createReading();
    let text = "";
    try {
      for await (const { name, data } of api.followAnswer({ id, reply, signal: reading, onLost: turn.showLost })) {
        if (name === "answer") rememberAnswer(data.id, question);
        else if (name === "progress") turn.showProgress(data.stage);
        else if (name === "delta") {
          text += data.text;
          follow(() => turn.append(data.text));
          if (!signal.aborted) aloud.append(data.text);
        } else if (name === "done") {
          follow(() => turn.finish(data, text));
          clip?.showAnswered(data.frames);
          if (!signal.aborted) aloud.end(data.finish_reason === "abort" ? " Stopped." : "");
        } else if (name === "error") throw api.eventError(data);
      }
    } catch (error) {
      if (reading.aborted) throw error; // the answer stays pending, so that it can be resumed
      const remedy = error.status === 404 || error.status === 410 ? null : { label: "Ask again", action: () => askAgain(turn, question) };
      follow(() => turn.fail(error, remedy));
    }
    pending.forget(sessionId, answering.id);
    readings.delete(sessionId);
  }

  function rememberAnswer(id, question) {
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
    if (answering.id) cancel(); // otherwise when the answer's id arrives
  }

  async function cancel() {
    try {
      await api.cancelAnswer(answering.id, signal);
      announce("Stopping.");
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

  /** Changes the log; scrolls to its end only if the user is there already. */
  function follow(change) {
    if (signal.aborted) return change(); // the conversation is not on the page any more
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
    if (hasKeyboard && focused?.hidden) field.focus(); // the focused button has just been hidden
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight}px`;
  }

  return { open };
}
