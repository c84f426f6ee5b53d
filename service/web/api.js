/** The HTTP client of the service, with one function for each route. No DOM. */

import * as key from "./key.js";
import { follow } from "./event-stream.js";

/** An error response; `status` is 0 if there was no response. */
export class ApiError extends Error {
  constructor(status, { message = "", code = "", retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

const STATUS_OF = {
  invalid_request_error: 422,
  gone_error: 410,
  rate_limit_error: 429,
  overloaded_error: 503,
  unavailable_error: 503,
};

export const models = (signal) => json("GET", "/v1/models", { signal }).then((list) => list.data);
/** A video with the frames that a model sees; null is the default model. */
export const video = (id, signal, model = null) =>
  json("GET", `/v1/videos/${id}${model ? `?model=${encodeURIComponent(model)}` : ""}`, { signal });
export const session = (id, signal) => json("GET", `/v1/sessions/${id}`, { signal });
export const messages = (id, signal) => json("GET", `/v1/sessions/${id}/messages`, { signal }).then((list) => list.data);
export const openSession = (video_ids, model, signal) =>
  json("POST", "/v1/sessions", { signal, body: model ? { video_ids, model } : { video_ids } });
export const sessions = (after) => json("GET", `/v1/sessions?limit=20${after ? `&after=${after}` : ""}`);
export const deleteSession = (id) => json("DELETE", `/v1/sessions/${id}`);
export const answer = (id, signal) => json("GET", `/v1/answers/${id}`, { signal });
export const cancelAnswer = (id, signal) => json("POST", `/v1/answers/${id}/cancel`, { signal });

export const contentUrl = (id, signal) => fileUrl(`/v1/videos/${id}/content`, signal);
export const frameUrl = (id, number, signal) => fileUrl(`/v1/videos/${id}/frames/${number}.jpg`, signal);

/** Whether a video's file is still stored; its record may exist longer. */
export async function hasFile(id, signal) {
  try {
    await send("GET", `/v1/videos/${id}/content`, { signal, headers: { Range: "bytes=0-0" } });
  } catch (error) {
    if (error.status === 404 || error.status === 410) return false;
  }
  return true;
}

/**
 * A URL for a player or an image, valid until `signal` aborts. They cannot send an API key, so with a key the file is
 * fetched as a whole.
 */
async function fileUrl(path, signal) {
  if (!key.recall()) return path;
  const response = await send("GET", path, { signal });
  const url = URL.createObjectURL(await response.blob());
  signal.addEventListener("abort", () => URL.revokeObjectURL(url), { once: true });
  return url;
}

/** Fetches a sample clip as a file, as if the user had chosen it. */
export async function sampleFile(url, signal) {
  const response = await send("GET", url, { signal });
  const clip = await response.blob();
  return new File([clip], url.split("/").pop(), { type: clip.type });
}

/**
 * Uploads a file and resolves with its video. `onProgress` is called with the number of bytes sent.
 * It uses XMLHttpRequest, because fetch does not report the progress of an upload.
 */
export function uploadVideo(file, { signal, onProgress }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const form = new FormData();
    form.append("file", file);
    request.upload.onprogress = (event) => onProgress(Math.min(event.loaded, file.size));
    request.upload.onload = () => onProgress(file.size);
    request.onload = () => {
      const body = parsed(request.responseText);
      if (request.status < 300 && body) resolve(body);
      else reject(refusal(request.status, body, request.getResponseHeader("Retry-After")));
    };
    request.onerror = () => reject(new ApiError(0));
    signal.addEventListener("abort", () => (request.abort(), reject(signal.reason)), { once: true });
    request.open("POST", "/v1/videos");
    for (const [name, value] of Object.entries(key.headers())) request.setRequestHeader(name, value);
    request.send(form);
  });
}

/** Yields the events of a video's preparation. */
export function followVideo(id, { signal, onLost }) {
  const connect = (after) => stream("GET", `/v1/videos/${id}/events`, { after, signal });
  return follow(connect, { ends: ["ready", "failed"], signal, isFinal, onLost });
}

/** Asks a question. Resolves when it is accepted; read the events of its answer with `followAnswer`. */
export const ask = (sessionId, content, settings, signal) =>
  stream("POST", `/v1/sessions/${sessionId}/messages`, { signal, body: { ...settings, content, stream: true } });

/** Yields an answer's events: from the response to its question, and from its log after a lost connection. */
export async function* followAnswer({ id = null, reply = null, signal, onLost }) {
  const connect = (after) => {
    const first = reply;
    reply = null;
    if (first) return first;
    if (id === null) throw new ApiError(0); // lost before the answer's id was known, so it cannot be resumed
    return stream("GET", `/v1/answers/${id}/events`, { after, signal });
  };
  const isOver = (error) => isFinal(error) || (id === null && error instanceof ApiError);
  for await (const event of follow(connect, { ends: ["done", "error"], signal, isFinal: isOver, onLost })) {
    if (event.name === "answer") id = event.data.id;
    yield event;
  }
}

/** The error in the data of an SSE event, which has an error type instead of a status. */
export const eventError = (data) => refusal(STATUS_OF[data.error?.type] ?? 500, data, null);

function isFinal(error) {
  return error instanceof ApiError && error.status !== 0 && error.status < 500;
}

async function json(method, path, options) {
  const response = await send(method, path, options);
  return response.json();
}

function stream(method, path, { after = 0, ...options }) {
  const headers = { Accept: "text/event-stream", ...(after ? { "Last-Event-ID": String(after) } : {}) };
  return send(method, path, { ...options, headers });
}

async function send(method, path, { signal, body, headers = {} } = {}) {
  const request = { method, signal, headers: { ...key.headers(), ...headers } };
  if (body !== undefined) {
    request.body = JSON.stringify(body);
    request.headers["Content-Type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(path, request);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0);
  }
  if (!response.ok) throw refusal(response.status, parsed(await response.text()), response.headers.get("Retry-After"));
  return response;
}

function refusal(status, body, retryAfter) {
  if (status === 401) key.refused();
  const seconds = Number.parseInt(retryAfter, 10);
  return new ApiError(status, { ...body?.error, retryAfter: Number.isFinite(seconds) ? seconds : null });
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // for example the error page of a proxy
  }
}
