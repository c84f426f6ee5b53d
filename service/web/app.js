/** The page: from a chosen clip to a conversation about it, and back to one by the address (`#ses_…`). */

import { say } from "./announcer.js";
import * as api from "./api.js";
import { createClip } from "./clip.js";
import { createConversation } from "./conversation.js";
import * as key from "./key.js";
import * as pending from "./pending.js";
import { showProblem } from "./problem.js";
import { createSidebar } from "./sidebar.js";
import { modelNote } from "./wording.js";

const SAMPLES = "/static/samples/";
const SESSION = /^#(ses_[0-9a-f]{32})$/u;

const [start, talk, clips, log, opening, composer, startProblem, newVideo, file] =
  ["start", "talk", "clips", "log", "opening", "composer", "start-problem", "new-video", "file"]
    .map((id) => document.getElementById(id));

const sidebar = createSidebar({ onAgain: beginAgain, onDeleted: leaveDeleted });
let shown = new AbortController(); // what is on the page now; aborting it lets go of its requests and listeners

/** Leaves what is shown. @returns {AbortSignal} of what comes instead */
function leave() {
  shown.abort();
  shown = new AbortController();
  clips.replaceChildren();
  log.replaceChildren();
  opening.hidden = true;
  startProblem.hidden = true;
  return shown.signal;
}

function showStart() {
  leave();
  show("start");
  document.title = "Reeltalk";
  sidebar.mark();
}

function show(view) {
  document.body.dataset.view = view;
  start.hidden = view !== "start";
  talk.hidden = newVideo.hidden = view !== "talk";
}

/** Uploads a clip and begins a conversation about it. */
async function talkAbout(chosen) {
  const signal = leave();
  if (location.hash) history.pushState(null, "", location.pathname); // what was shown stays a step back
  show("talk");
  const source = URL.createObjectURL(chosen);
  signal.addEventListener("abort", () => URL.revokeObjectURL(source));
  const clip = createClip({ source, name: chosen.name, signal, onCancel: () => showStart() });
  const conversation = createConversation({ signal, clip, onNamed: sidebar.name, onGone: leaveGone });
  clips.append(clip.element);
  clip.showUpload(0, chosen.size);
  try {
    const onProgress = (sent) => clip.showUpload(sent, chosen.size);
    const video = await api.uploadVideo(chosen, { signal, onProgress });
    clip.showVideo(video);
    const session = await api.openSession([video.id], signal);
    history.pushState(null, "", `#${session.id}`);
    sidebar.load();
    document.title = `${video.filename} · Reeltalk`;
    await Promise.all([conversation.open(session.id), prepare(clip, video, signal)]);
  } catch (error) {
    giveUp(error, signal, () => (location.hash ? route() : talkAbout(chosen)));
  }
}

/** Shows a conversation that was begun before: its videos, its turns, and an answer that may still be running. */
async function comeBackTo(sessionId) {
  const signal = leave();
  show("talk");
  try {
    const [session, messages] = await Promise.all([api.session(sessionId, signal), api.messages(sessionId, signal)]);
    const answer = session.running_answer_id && (await api.answer(session.running_answer_id, signal));
    const running = answer && { answerId: answer.id, question: answer.question };
    const videos = await Promise.all(session.video_ids.map((id) => api.video(id, signal)));
    const shownClips = videos.map((video) => createClip({ source: api.contentUrl(video.id, signal), name: video.filename, signal }));
    const conversation = createConversation({ signal, clip: shownClips[0], onNamed: sidebar.name, onGone: leaveGone });
    clips.append(...shownClips.map((clip) => clip.element));
    videos.forEach((video, number) => shownClips[number].showVideo(video));
    document.title = `${videos[0].filename} · Reeltalk`;
    const preparations = videos.map((video, number) => prepare(shownClips[number], video, signal));
    await Promise.all([conversation.open(sessionId, messages, running), ...preparations]);
  } catch (error) {
    giveUp(error, signal, route);
  }
}

/** Shows a video's preparation up to its frames. */
async function prepare(clip, video, signal) {
  if (video.status === "ready") return;
  for await (const { name, data } of api.followVideo(video.id, { signal, onLost: clip.showLost })) {
    if (name === "failed") throw api.eventError(data);
    if (name !== "ready") clip.showStage(name, data.fraction);
  }
  clip.showVideo(await api.video(video.id, signal));
  say("The video is ready.");
  sidebar.load(); // its picture is there now
}

/** Back to the start, with the reason, and with a way to try again if that may help. */
function giveUp(error, signal, again) {
  if (signal.aborted) return; // somebody has gone elsewhere meanwhile
  if (error.status === undefined) console.error(error);
  const mayPass = error.status === 0 || error.status === 429 || error.status >= 500;
  if (error.status === 404) sidebar.load(); // it was deleted elsewhere
  if (error.status !== 401 && !mayPass) history.replaceState(null, "", location.pathname);
  showStart();
  if (error.status === 401) return; // the field for a key says what is missing
  showProblem(startProblem, error, mayPass ? { label: "Try again", action: again } : null);
}

/** Begins another conversation about the videos of one. */
async function beginAgain({ video_ids: videoIds }) {
  const signal = leave();
  try {
    const session = await api.openSession(videoIds, signal);
    history.pushState(null, "", `#${session.id}`);
    route();
    await sidebar.load();
  } catch (error) {
    giveUp(error, signal, () => beginAgain({ video_ids: videoIds }));
  }
}

/** What is shown was deleted elsewhere. */
function leaveGone() {
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
  if (session) comeBackTo(session[1]);
  else showStart();
}

async function trySample(name) {
  const signal = leave();
  let sample;
  try {
    sample = await api.sampleFile(SAMPLES + name, signal);
  } catch (error) {
    giveUp(error, signal, () => trySample(name));
    return;
  }
  talkAbout(sample);
}

/** With a key that was just typed: on with what the address says. */
function useKey() {
  sidebar.load();
  showModel();
  route();
}

async function showModel() {
  let model;
  try {
    [model] = await api.models();
  } catch {
    return; // the page works without the model's name
  }
  const chip = document.getElementById("model");
  chip.querySelector("b").textContent = model.id;
  chip.hidden = false;
  const note = modelNote(model.id);
  for (const element of document.querySelectorAll(".model-note")) {
    element.textContent = note;
    element.hidden = !note;
  }
}

/** A clip may be dropped anywhere; without this the browser would leave the page to play it. */
function takeDrops() {
  let depth = 0; // every element under the pointer is entered and left on its own
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
    if (dropped) talkAbout(dropped);
  });
}

file.addEventListener("change", () => {
  const [chosen] = file.files;
  file.value = ""; // so that choosing the same file again is a change, too
  if (chosen) talkAbout(chosen);
});
for (const button of document.querySelectorAll("[data-sample]")) {
  button.addEventListener("click", () => trySample(button.dataset.sample));
}
composer.addEventListener("submit", (event) => event.preventDefault()); // also while no conversation listens
newVideo.addEventListener("click", () => {
  history.pushState(null, "", location.pathname);
  showStart();
});
addEventListener("popstate", route);
takeDrops();
key.askWhenRefused(useKey);
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the conversation
  (talk.hidden ? file : document.getElementById("question")).focus();
});
sidebar.load();
showModel();
route();
