"""Node clients work unchanged: OpenAI's, tus, and an `EventSource`."""

import json
from pathlib import Path
from typing import Any

from service.commands.demo import SAMPLE
from tests.node_clients import run
from tests.running import RunningService

CHAT = """
import OpenAI from "openai";
import fs from "node:fs";

const [url, path] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "any", maxRetries: 0 });
const file = await client.files.create({ file: fs.createReadStream(path), purpose: "user_data" });
await client.files.waitForProcessing(file.id, { pollInterval: 100 });
const content = [{ type: "file", file: { file_id: file.id } }, { type: "text", text: "How many objects are there?" }];
const asked = { model: "tiny", messages: [{ role: "user", content }], temperature: 0 };
const streamed = { ...asked, stream: true, stream_options: { include_usage: true } };
const stream = await client.chat.completions.create(streamed);
let text = "", usage;
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
const whole = await client.chat.completions.create({ ...asked, logprobs: true });
let refused;
try {
  await client.chat.completions.create({ ...asked, tools: [{ type: "function", function: { name: "f" } }] });
} catch (error) {
  refused = { status: error.status, param: error.param, code: error.code, name: error.constructor.name };
}
const models = [];
for await (const model of client.models.list()) models.push(model.id);
console.log(JSON.stringify({ text, usage, whole, refused, models, file }));
"""

UPLOAD = """
import * as tus from "tus-js-client";
import fs from "node:fs";

const [url, path] = process.argv.slice(2);
new tus.Upload(fs.createReadStream(path), {
  endpoint: `${url}/v1/uploads`,
  chunkSize: 5000,
  uploadSize: fs.statSync(path).size,
  metadata: { filename: "shapes.mp4", filetype: "video/mp4" },
  onError: (error) => { throw error; },
  onSuccess: ({ lastResponse }) => console.log(lastResponse.getHeader("Reeltalk-Video-Id")),
}).start();
"""

EVENTS = """
import { EventSource } from "eventsource";

const source = new EventSource(process.argv[2]);
const results = [];
for (const name of ["answer", "progress", "delta", "done", "error"]) {
  source.addEventListener(name, (event) => {
    results.push({ name, id: Number(event.lastEventId), data: JSON.parse(event.data) });
    if (name === "done" || name === "error") {
      source.close();
      console.log(JSON.stringify(results));
    }
  });
}
"""


def test_openai_s_client_streams_the_right_answer_about_an_uploaded_file(service: RunningService, node: Path) -> None:
    results: dict[str, Any] = json.loads(run(node, CHAT, service.url, str(SAMPLE)))
    assert results["models"] == ["tiny"]
    assert results["text"] == results["whole"]["choices"][0]["message"]["content"] == "There are two objects."
    assert results["usage"]["prompt_tokens_details"]["video_tokens"] == 96
    assert (
        "".join(token["token"] for token in results["whole"]["choices"][0]["logprobs"]["content"]).strip()
        == results["text"]
    )
    assert results["refused"] == {
        "status": 422, "param": "tools", "code": "unsupported_value", "name": "UnprocessableEntityError",
    }  # fmt: skip


def test_a_tus_client_uploads_a_file_in_pieces(service: RunningService, node: Path) -> None:
    assert run(node, UPLOAD, service.url, str(SAMPLE)).strip() == service.upload(SAMPLE)["id"]


def test_an_event_source_reads_an_answer_from_its_first_event_to_its_last(service: RunningService, node: Path) -> None:
    message = service.ask(service.open_session(service.upload(SAMPLE)["id"]), "How many objects are there?")
    results = json.loads(run(node, EVENTS, f"{service.url}/v1/answers/{message['answer_id']}/events"))
    assert [event["id"] for event in results] == list(range(1, len(results) + 1))
    assert "".join(event["data"]["text"] for event in results if event["name"] == "delta") == message["content"]
    assert results[-1]["data"]["usage"] == message["usage"]
