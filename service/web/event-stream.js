/** Server-Sent Events over fetch: a parser that does no I/O, and a reader that survives lost connections. */

const SILENCE = 25_000; // ms; the service gives a sign of life every 10 s, so longer silence is a dead connection
const PATIENCE = 8; // connections lost in a row, without one event between them
const FIRST_PAUSE = 300; // ms, doubled with each loss
const LONGEST_PAUSE = 5_000;

/** Takes the stream's text in pieces of any size and gives the events that are complete. */
export class EventParser {
  #rest = "";
  #id = null;
  #name = "";
  #data = [];

  /** @returns {{id: number | null, name: string, data: any}[]} `id` is null for an event that carried none */
  push(text) {
    const events = [];
    // A "\r" at the very end may be half of a "\r\n": it waits for what follows.
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
    if (colon === 0) return; // a comment: the sign of life
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

/** The stream broke off, again and again; `status` as in an error of the service: no reply. */
export class ConnectionLost extends Error {
  status = 0;
}

/**
 * Yields a log's events up to the one that ends it, each once and in order, over as many connections as it takes.
 *
 * @param {(after: number) => Promise<Response>} connect opens the stream behind event `after`
 * @param {object} options
 * @param {string[]} options.ends names of the events after which nothing comes
 * @param {AbortSignal} options.signal stops reading
 * @param {(error: unknown) => boolean} options.isFinal whether an error of `connect` will not go away by trying again
 * @param {() => void} [options.onLost] a connection was lost; another will be tried
 */
export async function* follow(connect, { ends, signal, isFinal, onLost }) {
  let after = 0;
  let losses = 0;
  for (;;) {
    let reason = new ConnectionLost();
    try {
      for await (const event of readEvents(await connect(after))) {
        // Without an id it is not of the log: this reading of the log has failed, the log itself goes on.
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
    if (++losses > PATIENCE) throw reason;
    onLost?.();
    await pause(Math.min(FIRST_PAUSE * 2 ** (losses - 1), LONGEST_PAUSE), signal);
  }
}

async function* readEvents(response) {
  const parser = new EventParser();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const hangUp = () => reader.cancel().catch(() => {});
  try {
    for (;;) {
      const timer = setTimeout(hangUp, SILENCE);
      const { done, value } = await reader.read().finally(() => clearTimeout(timer));
      if (done) return;
      yield* parser.push(value);
    }
  } finally {
    hangUp();
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}
