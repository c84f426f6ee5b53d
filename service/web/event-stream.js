/** Server-Sent Events over fetch: a parser without I/O, and a reader that reconnects after lost connections. */

const SILENCE = 25_000; // ms; the service sends a keep-alive comment every 10 s, so after that the connection is dead
const MAX_LOSSES = 8; // connections lost one after another without an event
const FIRST_PAUSE = 300; // ms, doubled after each loss
const LONGEST_PAUSE = 5_000;

/** Parses the text of a stream in pieces of any size; returns complete events. */
export class EventParser {
  #rest = "";
  #id = null;
  #name = "";
  #data = [];

  /** @returns {{id: number | null, name: string, data: any}[]} `id` is null for an event without one */
  push(text) {
    const events = [];
    // A "\r" at the end may be the first half of "\r\n", so it waits for the next piece.
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    for (const line of lines) {
      const event = line === "" ? this.#dispatch() : this.#field(line);
      if (event) events.push(event);
    }
    return events;
  }

  #field(line) {
    const colon = line.indexOf(":");
    if (colon === 0) return; // a comment, sent to keep the connection alive
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#name = value;
    else if (name === "id") this.#id = Number(value);
  }

  #dispatch() {
    const event = { id: this.#id, name: this.#name || "message", data: this.#data.join("\n") };
    const isEmpty = this.#data.length === 0;
    [this.#id, this.#name, this.#data] = [null, "", []];
    return isEmpty ? null : { ...event, data: JSON.parse(event.data) };
  }
}

/** The connection was lost too often; `status` is 0, as in an `ApiError` without a response. */
export class ConnectionLost extends Error {
  status = 0;
}

/**
 * Yields the events of a log up to its last one, each once and in order; reconnects when necessary.
 *
 * @param {(after: number) => Promise<Response>} connect opens the stream after the event with the id `after`
 * @param {object} options
 * @param {string[]} options.ends the names of the events that end a log
 * @param {AbortSignal} options.signal stops reading
 * @param {(error: unknown) => boolean} options.isFinal whether a retry would not help after an error of `connect`
 * @param {() => void} [options.onLost] called before each attempt to reconnect
 */
export async function* follow(connect, { ends, signal, isFinal, onLost }) {
  let after = 0;
  let losses = 0;
  for (;;) {
    let reason = new ConnectionLost();
    try {
      for await (const event of readEvents(await connect(after))) {
        // An event without an id is not part of the log: this connection has failed, but the log continues.
        if (event.id === null) break;
        after = event.id;
        losses = 0;
        yield event;
        if (ends.includes(event.name)) return;
      }
    } catch (error) {
      if (signal.aborted || isFinal(error)) throw error;
      if (error.status !== undefined) reason = error;
    }
    signal.throwIfAborted();
    if (++losses > MAX_LOSSES) throw reason;
    onLost?.();
    await pause(Math.min(FIRST_PAUSE * 2 ** (losses - 1), LONGEST_PAUSE), signal);
  }
}

async function* readEvents(response) {
  const parser = new EventParser();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const cancel = () => reader.cancel().catch(() => {});
  try {
    for (;;) {
      const timer = setTimeout(cancel, SILENCE);
      const { done, value } = await reader.read().finally(() => clearTimeout(timer));
      if (done) return;
      yield* parser.push(value);
    }
  } finally {
    cancel();
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}
