/** Numbers, times and errors in words that people read. No DOM, no network. */

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

/** When something was: the time of a day that is today, else the date. */
export function day(date) {
  const isToday = date.toDateString() === new Date().toDateString();
  return date.toLocaleString([], isToday ? { timeStyle: "short" } : { day: "numeric", month: "short", year: "numeric" });
}

/** What is known of a video, in one line. */
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

/** Where an answer's tokens and time went, in one line. */
export function answerFigures({ finish_reason, usage, timings, frames }) {
  const figures = [];
  if (finish_reason in ENDINGS) figures.push(ENDINGS[finish_reason]);
  const seen = (frames ?? []).reduce((sum, video) => sum + video.frames.length, 0);
  if (seen) figures.push(plural(seen, "frame"));
  if (usage) figures.push(`${plural(usage.prompt_tokens, "token")} in, ${usage.completion_tokens} out`);
  if (timings?.time_to_first_token_ms != null) figures.push(`first after ${duration(timings.time_to_first_token_ms)}`);
  if (timings?.tokens_per_second) figures.push(`${Math.round(timings.tokens_per_second)} tokens/s`);
  if (timings) figures.push(`${duration(timings.total_time_ms)} in all`);
  return figures.map((figure) => figure.replaceAll(" ", "\u00a0")).join(" · "); // lines break between figures only
}

const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
const duration = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

/** Moments named in a text, as [start, end, seconds]: "0:12", "1:02:03", "4.5 s", "12 seconds". */
export function moments(text) {
  const found = [];
  for (const match of text.matchAll(/\b(?:(\d+):)?(\d{1,2}):(\d{2}(?:\.\d+)?)\b|\b(\d+(?:\.\d+)?) ?(?:s|sec|seconds?)\b/gu)) {
    const [whole, hours, minutes, seconds, plain] = match;
    const moment = plain === undefined ? Number(hours ?? 0) * 3600 + Number(minutes) * 60 + Number(seconds) : Number(plain);
    found.push([match.index, match.index + whole.length, moment]);
  }
  return found;
}

const TITLES = {
  0: "The service cannot be reached.",
  401: "This service asks for an API key.",
  403: "This key is not for that.",
  404: "This is no longer here.",
  409: "One question at a time.",
  410: "The video's file is gone.",
  413: "This file is too large.",
  415: "This is not a video that can be opened.",
  422: "This cannot be used.",
  429: "That was a bit much at once.",
  503: "The service is busy or not ready yet.",
};
const DETAILS = { 0: "Is it still running?" };

/** An error as a title and, if there is more to say, the service's own sentence. */
export function explain(error) {
  const status = error.status ?? -1;
  const title = TITLES[status] ?? (status < 0 ? "Something went wrong on this page." : "Something went wrong in the service.");
  const wait = error.retryAfter ? ` Try again in ${plural(error.retryAfter, "second")}.` : "";
  // many of the service's sentences say already that one should try again
  const detail = DETAILS[status] ?? error.message + (/try again/iu.test(error.message) ? "" : wait);
  return { title, detail };
}

/** What a user should know before believing the model; null when there is nothing to warn of. */
export function modelNote(model) {
  return model === "tiny"
    ? "“tiny” is a small model of drawn shapes: it tells what they are, how they move, when they come and go. About anything else it says that it does not know it."
    : null;
}
