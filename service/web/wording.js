/** Formats numbers, times and errors for users. No DOM, no network. */

const UNITS = ["bytes", "kB", "MB", "GB"];

/** 776184 -> "776 kB" */
export function bytes(count) {
  const power = Math.min(Math.floor(Math.log10(Math.max(count, 1)) / 3), UNITS.length - 1);
  const value = count / 1000 ** power;
  return `${value.toFixed(power > 1 && value < 100 ? 1 : 0)} ${UNITS[power]}`;
}

/** 63.25 -> "1:03", with tenths "1:03.2" */
export function clock(seconds, { tenths = false } = {}) {
  const whole = tenths ? Math.floor(seconds * 10 + 1e-6) / 10 : Math.floor(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const rest = (whole % 60).toFixed(tenths ? 1 : 0).padStart(tenths ? 4 : 2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

export const percent = (fraction) => `${Math.floor(fraction * 100)} %`;

/** A date as the time if it is today, else as the date. */
export function day(date) {
  const isToday = date.toDateString() === new Date().toDateString();
  return date.toLocaleString([], isToday ? { timeStyle: "short" } : { day: "numeric", month: "short", year: "numeric" });
}

/** The known properties of a video, in one line. */
export function videoFacts(video) {
  const known = [];
  if (video.width) known.push(`${video.width} × ${video.height}`);
  if (video.duration) known.push(clock(video.duration));
  if (video.fps) known.push(`${Number(video.fps.toFixed(2))} fps`);
  if (video.codec) known.push(video.codec);
  known.push(bytes(video.bytes));
  return known.join(" · ");
}

const ENDINGS = { abort: "stopped", length: "cut at the token limit" };

/** The tokens and times of an answer, in one line. */
export function answerFigures({ finish_reason, usage, timings, frames }) {
  const figures = [];
  if (finish_reason in ENDINGS) figures.push(ENDINGS[finish_reason]);
  const seen = (frames ?? []).reduce((sum, video) => sum + video.frames.length, 0);
  if (seen) figures.push(plural(seen, "frame"));
  if (usage) figures.push(`${plural(usage.prompt_tokens, "token")} in, ${usage.completion_tokens} out`);
  if (timings?.time_to_first_token_ms != null) figures.push(`first token after ${duration(timings.time_to_first_token_ms)}`);
  if (timings?.tokens_per_second) figures.push(`${Math.round(timings.tokens_per_second)} tokens/s`);
  if (timings) figures.push(`${duration(timings.total_time_ms)} in total`);
  return figures.map((figure) => figure.replaceAll(" ", "\u00a0")).join(" · "); // lines break between figures only
}

const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
const duration = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

/** Finds times in a text, such as "0:12", "1:02:03", "4.5 s" and "12 seconds"; returns [start, end, seconds] for each. */
export function moments(text) {
  const found = [];
  for (const match of text.matchAll(/\b(?:(\d+):)?(\d{1,2}):(\d{2}(?:\.\d+)?)\b|\b(\d+(?:\.\d+)?) ?(?:s|sec|seconds?)\b/gu)) {
    const [whole, hours, minutes, seconds, plain] = match;
    const moment = plain === undefined ? Number(hours ?? 0) * 3600 + Number(minutes) * 60 + Number(seconds) : Number(plain);
    found.push([match.index, match.index + whole.length, moment]);
  }
  return found;
}

/**
 * The moments that the service found in an answer, as [start, end, seconds, label]: positions in the text, the second at
 * which the moment begins, and its stretch of the clip, "0:12–0:18". The service counts characters, JavaScript UTF-16
 * units.
 */
export function namedMoments(text, found) {
  const positions = [0];
  for (const character of text) positions.push(positions.at(-1) + character.length);
  return found.map(({ text_start: start, text_end: end, ...moment }) => [
    positions[start],
    positions[end],
    moment.start,
    `${clock(moment.start)}–${clock(moment.end)}`,
  ]);
}

const TITLES = {
  0: "The service cannot be reached.",
  401: "This service requires an API key.",
  403: "This API key does not allow that.",
  404: "This does not exist any more.",
  409: "One question at a time.",
  410: "The video's file has been deleted.",
  413: "This file is too large.",
  415: "This file is not a supported video.",
  422: "The service cannot use this.",
  429: "Too many requests.",
  503: "The service is busy or not ready yet.",
};
const DETAILS = { 0: "Is it still running?" };

/** Describes an error by a title and the message of the service. */
export function explain(error) {
  const status = error.status ?? -1;
  const title = TITLES[status] ?? (status < 0 ? "Something went wrong on this page." : "Something went wrong in the service.");
  const wait = error.retryAfter ? ` Try again in ${plural(error.retryAfter, "second")}.` : "";
  // many messages of the service already ask the user to try again
  const detail = DETAILS[status] ?? error.message + (/try again/iu.test(error.message) ? "" : wait);
  return { title, detail };
}

/** What a user must know about the limits of a model; null if there is nothing to say. */
export function modelNote(model) {
  return model?.id === "tiny" && model.family === "videochat"
    ? "“tiny” is a small model that knows only drawn shapes: what they are, how they move, and when they appear and disappear. If you ask about anything else, it says that it does not know."
    : null;
}
