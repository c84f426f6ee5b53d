/** The page: starts a conversation about a chosen clip, and shows an earlier one by its address (`#ses_…`). */

import { announce } from "./announcer.js";
import * as api from "./api.js";
import { createClip } from "./clip.js";
import { createConversation } from "./conversation.js";
import * as key from "./key.js";
import { createModels, seesVideos } from "./models.js";
import * as pending from "./pending.js";
import { showProblem } from "./problem.js";
import { createSidebar } from "./sidebar.js";
import { modelNote } from "./wording.js";

const SAMPLES = "/static/samples/";
const SESSION = /^#(ses_[0-9a-f]{32})$/u;

const [start, talk, clips, log, opening, composer, startProblem, newVideo, file, answerer, textStart] =
  ["start", "talk", "clips", "log", "opening", "composer", "start-problem", "new-video", "file", "answerer", "text-start"]
    .map((id) => document.getElementById(id));

const models = createModels({ onChange: showModels });
const sidebar = createSidebar({ onAgain: startAgain, onDeleted: leaveDeleted, areModelsNamed: models.areSeveral });
let shown = new AbortController(); // the current view; aborting it cancels its requests and removes its listeners

/** Clears the current view. @returns {AbortSignal} the signal of the next view */
function resetView() {
  shown.abort();
  shown = new AbortController();
  clips.replaceChildren();
  log.replaceChildren();
  opening.hidden = true;
  startProblem.hidden = true;
  answerer.hidden = true;
  return shown.signal;
}

function showStart() {
  resetView();
  show("start");
  document.title = "Reeltalk";
  sidebar.mark();
}

function show(view) {
  document.body.dataset.view = view;
  start.hidden = view !== "start";
  talk.hidden = newVideo.hidden = view !== "talk";
}

/** Adapts a view to conversations with or without videos. */
function adapt(view, { hasVideos, note }) {
  for (const element of view.querySelectorAll(".with-video")) element.hidden = !hasVideos;
  for (const element of view.querySelectorAll(".without-video")) element.hidden = hasVideos;
  const words = view.querySelector(".model-note");
  words.textContent = note;
  words.hidden = !note;
}

/** Shows the model of the current conversation. */
function showAnswerer(name, { hasVideos }) {
  adapt(talk, { hasVideos, note: modelNote(models.get(name)) });
  clips.hidden = !hasVideos;
  answerer.querySelector("b").textContent = name;
  answerer.hidden = !models.areSeveral();
}

/** Shows what depends on the models, once they are known and after each choice. */
function showModels() {
  const model = models.chosen();
  adapt(start, { hasVideos: seesVideos(model), note: modelNote(model) });
  sidebar.show();
}

/** Uploads a clip and starts a conversation about it. */
async function startConversation(chosen) {
  const model = models.chosen();
  const signal = resetView();
  if (!seesVideos(model)) {
    const message = `${model.id} cannot see videos. Choose another model.`;
    showFailure(new api.ApiError(422, { message }), signal);
    return;
  }
  if (location.hash) history.pushState(null, "", location.pathname); // the previous view stays in the history
  show("talk");
  const frames = await models.framesOf(model?.id);
  if (signal.aborted) return;
  const source = URL.createObjectURL(chosen);
  signal.addEventListener("abort", () => URL.revokeObjectURL(source));
  showAnswerer(model?.id, { hasVideos: true });
  const clip = createClip({ source, name: chosen.name, hasPictures: frames.havePictures, signal, onCancel: () => showStart() });
  const conversation = createConversation({ signal, clip, onNamed: sidebar.name, onDeletedElsewhere: leaveDeletedSession });
  clips.append(clip.element);
  clip.showUpload(0, chosen.size);
  try {
    const onProgress = (sent) => clip.showUpload(sent, chosen.size);
    const uploaded = await api.uploadVideo(chosen, { signal, onProgress });
    const video = frames.name === null && frames.areKnown ? uploaded : await seenVideo(uploaded.id, frames, signal);
    clip.showVideo(video);
    const session = await api.openSession([video.id], models.areSeveral() && model?.id, signal);
    history.pushState(null, "", `#${session.id}`);
    sidebar.load();
    document.title = `${video.filename} · Reeltalk`;
    await Promise.all([conversation.open(session.id), prepare(clip, video, frames, signal)]);
  } catch (error) {
    showFailure(error, signal, () => (location.hash ? route() : startConversation(chosen)));
  }
}

/** Shows an existing conversation: its videos, its turns, and an answer that may still be running. */
async function showSession(sessionId) {
  const signal = resetView();
  show("talk");
  try {
    const [session, messages] = await Promise.all([api.session(sessionId, signal), api.messages(sessionId, signal)]);
    const answer = session.running_answer_id && (await api.answer(session.running_answer_id, signal));
    const running = answer && { answerId: answer.id, question: answer.question };
    const frames = await models.framesOf(session.model);
    const videos = await Promise.all(session.video_ids.map((id) => seenVideo(id, frames, signal)));
    const shownClips = videos.map(({ id, filename: name }) =>
      createClip({ source: api.contentUrl(id, signal), name, hasPictures: frames.havePictures, signal }));
    showAnswerer(session.model, { hasVideos: videos.length > 0 });
    const conversation = createConversation({ signal, clip: shownClips[0] ?? null, onNamed: sidebar.name, onDeletedElsewhere: leaveDeletedSession });
    clips.append(...shownClips.map((clip) => clip.element));
    videos.forEach((video, number) => shownClips[number].showVideo(video));
    document.title = `${videos[0]?.filename ?? "Conversation"} · Reeltalk`;
    const preparations = videos.map((video, number) => prepare(shownClips[number], video, frames, signal));
    await Promise.all([conversation.open(sessionId, messages, running), ...preparations]);
  } catch (error) {
    showFailure(error, signal, route);
  }
}

/** A video with the frames that a model sees, as far as they are known. */
async function seenVideo(id, frames, signal) {
  const video = await api.video(id, signal, frames.name);
  return frames.areKnown ? video : { ...video, frames: [] };
}

/**
 * Shows the progress of a video's preparation, then the frames that the model sees. Another model than the default one may
 * sample them with the first question.
 */
async function prepare(clip, video, frames, signal) {
  if (video.status === "ready") return;
  for await (const { name, data } of api.followVideo(video.id, { signal, onLost: clip.showLost })) {
    if (name === "failed") throw api.eventError(data);
    if (name !== "ready") clip.showStage(name, data.fraction);
  }
  clip.showVideo(await seenVideo(video.id, frames, signal));
  clip.endPreparation();
  announce("The video is ready.");
  sidebar.load(); // the video has a picture now
}

/** Returns to the start and shows an error, with a button to try again if that may help. */
function showFailure(error, signal, again = null) {
  if (signal.aborted) return; // the user has left this view
  if (error.status === undefined) console.error(error);
  const mayPass = error.status === 0 || error.status === 429 || error.status >= 500;
  if (error.status === 404) sidebar.load(); // deleted elsewhere, for example in another tab
  if (error.status !== 401 && !mayPass) history.replaceState(null, "", location.pathname);
  showStart();
  if (error.status === 401) return; // the form for the API key explains the error
  showProblem(startProblem, error, mayPass ? { label: "Try again", action: again } : null);
}

/** Starts another conversation about the videos of a session, or without a video. */
async function startAgain({ video_ids: videoIds, model: earlier = null }) {
  const signal = resetView();
  const model = models.chosen();
  const isFit = !model || seesVideos(model) === videoIds.length > 0;
  try {
    const session = await api.openSession(videoIds, isFit ? models.areSeveral() && model?.id : earlier, signal);
    history.pushState(null, "", `#${session.id}`);
    route();
    await sidebar.load();
  } catch (error) {
    showFailure(error, signal, () => startAgain({ video_ids: videoIds, model: earlier }));
  }
}

/** Leaves the current session, which was deleted elsewhere. */
function leaveDeletedSession() {
  leaveDeleted(location.hash.slice(1));
  sidebar.load();
}

function leaveDeleted(id) {
  pending.forget(id);
  if (location.hash !== `#${id}`) return;
  history.replaceState(null, "", location.pathname);
  showStart();
}

function route() {
  sidebar.mark();
  const session = SESSION.exec(location.hash);
  if (session) showSession(session[1]);
  else showStart();
}

async function trySample(name) {
  const signal = resetView();
  let sample;
  try {
    sample = await api.sampleFile(SAMPLES + name, signal);
  } catch (error) {
    showFailure(error, signal, () => trySample(name));
    return;
  }
  startConversation(sample);
}

/** Loads the page again with a new API key. */
function useKey() {
  models.reload();
  sidebar.load();
  route();
}

/** Accepts a clip dropped anywhere on the page; otherwise the browser would leave the page to play it. */
function acceptDrops() {
  let depth = 0; // the browser reports entering and leaving for every element under the pointer
  const hasFile = (event) => event.dataTransfer?.types.includes("Files");
  const mark = () => document.body.toggleAttribute("data-dropping", depth > 0);
  addEventListener("dragenter", (event) => hasFile(event) && (depth++, mark()));
  addEventListener("dragleave", (event) => hasFile(event) && (depth--, mark()));
  addEventListener("dragover", (event) => hasFile(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    depth = 0;
    mark();
    const [dropped] = event.dataTransfer.files;
    if (dropped) startConversation(dropped);
  });
}

file.addEventListener("change", () => {
  const [chosen] = file.files;
  file.value = ""; // so that choosing the same file again is a change
  if (chosen) startConversation(chosen);
});
for (const button of document.querySelectorAll("[data-sample]")) {
  button.addEventListener("click", () => trySample(button.dataset.sample));
}
composer.addEventListener("submit", (event) => event.preventDefault()); // also while there is no conversation
textStart.addEventListener("click", () => startAgain({ video_ids: [] }));
newVideo.addEventListener("click", () => {
  history.pushState(null, "", location.pathname);
  showStart();
});
addEventListener("popstate", route);
acceptDrops();
key.askWhenRefused(useKey);
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address must keep the id of the conversation
  if (start.hidden) document.getElementById("question").focus();
  else (textStart.hidden ? file : textStart).focus();
});
sidebar.load();
route();
