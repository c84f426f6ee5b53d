/** One video on the page: its player, the progress of its preparation, and the frames that the model sees. */

import { announce } from "./announcer.js";
import { frameUrl, hasFile } from "./api.js";
import { bytes, clock, percent, videoFacts } from "./wording.js";

/** @typedef {ReturnType<typeof createClip>} Clip */

/**
 * @param {object} options
 * @param {string | Promise<string>} options.source the URL of the file
 * @param {string} options.name
 * @param {boolean} options.hasPictures whether the service has pictures of the frames that the model sees
 * @param {AbortSignal} options.signal
 * @param {() => void} [options.onCancel]
 */
export function createClip({ source, name, hasPictures, signal, onCancel }) {
  const element = document.querySelector("#clip-template").content.cloneNode(true).firstElementChild;
  const find = (selector) => element.querySelector(selector);
  const [player, preparing, progress, cancel] = ["video", ".preparing", "progress", ".preparing button"].map(find);
  let id = null; // the id of the video, once the upload is complete
  let duration = null;
  let moments = [];

  find("h2").textContent = name;
  player.setAttribute("aria-label", `Player: ${name}`);
  player.onerror = async () => {
    player.hidden = true;
    find(".unplayable").hidden = false;
    if (id && !(await hasFile(id, signal))) {
      find(".unplayable").textContent = "The file of this clip is no longer stored, but the conversation is.";
    }
  };
  player.ontimeupdate = () => mark(player.currentTime);
  cancel.hidden = !onCancel;
  cancel.onclick = onCancel;
  Promise.resolve(source).then((url) => { player.src = url; }, player.onerror);

  function step(words, { amount = "", fraction = null } = {}) {
    preparing.hidden = false;
    find(".step").textContent = words;
    find(".amount").textContent = amount;
    progress.setAttribute("aria-label", words);
    if (fraction === null) progress.removeAttribute("value"); // an indeterminate bar
    else progress.value = fraction;
  }

  function showUpload(sent, total) {
    if (sent >= total) step("Checking the file");
    else step("Uploading", { amount: `${bytes(sent)} of ${bytes(total)} · ${percent(sent / total)}`, fraction: sent / total });
  }

  function showVideo(video) {
    id = video.id;
    duration = video.duration;
    cancel.hidden = true;
    find("h2").textContent = video.filename;
    find(".facts").textContent = videoFacts(video);
    // Set the aspect ratio before the player has loaded anything, so that the layout does not shift.
    if (video.width) player.style.aspectRatio = `${video.width} / ${video.height}`;
    if (video.width >= video.height) element.style.setProperty("--shape", player.style.aspectRatio);
    if (video.frames.length) showFrames(video);
    else if (video.status === "ready") endPreparation();
  }

  function showStage(stage, fraction) {
    if (stage === "decode") step("Reading frames", { amount: percent(fraction), fraction });
    else step("Encoding frames", fraction > 0 ? { amount: percent(fraction), fraction } : {});
  }

  function showLost() {
    step("Connection lost, reconnecting");
  }

  /** Shows the frames of an answer, if those that the model sees were not known before it. */
  function showAnswered(videos) {
    const seen = videos?.find((video) => video.video_id === id);
    if (seen?.frames.length && !moments.length) showFrames({ id, frames: seen.frames });
  }

  function endPreparation() {
    preparing.hidden = true;
  }

  function showFrames(video) {
    endPreparation();
    moments = video.frames.map((frame) => frame.timestamp);
    const shape = document.querySelector("#frame-template").content;
    find(".frames ol").replaceChildren(
      ...video.frames.map(({ timestamp }, number) => {
        const item = shape.cloneNode(true).firstElementChild;
        const [button, picture, time] = ["button", "img", "time"].map((selector) => item.querySelector(selector));
        picture.hidden = !hasPictures;
        // without the picture, the time identifies the frame
        if (hasPictures) frameUrl(video.id, number, signal).then((url) => { picture.src = url; }, () => {});
        time.textContent = clock(timestamp, { tenths: true });
        button.setAttribute("aria-label", `Frame ${number + 1}, go to ${time.textContent}`);
        button.onclick = () => seek(timestamp);
        return item;
      }),
    );
    find(".frames h3").textContent = `What the model sees: ${moments.length === 1 ? "one frame" : `${moments.length} frames`}`;
    find(".frames").hidden = false;
    mark(player.currentTime);
  }

  /** Marks the frame that is nearest to a time in the video. */
  function mark(seconds) {
    const distances = moments.map((moment) => Math.abs(moment - seconds));
    const nearest = distances.indexOf(Math.min(...distances));
    [...find(".frames ol").children].forEach((item, number) => {
      if (number === nearest) item.firstElementChild.setAttribute("aria-current", "true");
      else item.firstElementChild.removeAttribute("aria-current");
    });
  }

  function seek(seconds) {
    player.currentTime = seconds;
    mark(seconds);
    element.scrollIntoView({ block: "nearest" });
    player.scrollIntoView({ block: "nearest" });
    announce(`Player at ${clock(seconds, { tenths: true })}`);
  }

  /** Whether a time lies within the clip; true while its duration is unknown. */
  const hasMoment = (seconds) => duration === null || seconds <= duration;

  return { element, seek, hasMoment, showUpload, showVideo, showStage, showLost, showAnswered, endPreparation };
}
