"""Answer several questions about one clip in a batch, without a server: `python examples/offline.py`."""

from pathlib import Path

from model.families import load_family
from model.offline import Offline, watch
from model.text.conversation import Conversation, Turn

family = load_family("videochat")
offline = Offline(family)
clip, features = watch(family, Path("service/web/samples/shapes.mp4"))
for question in ("How many objects are there?", "Which way does the circle move?", "Is there a star?"):
    conversation = Conversation(clips=(clip,), turns=(Turn(role="user", text=question),))
    offline.add(question, conversation, [features])
answers: dict[str, str] = {}
for output in offline.outputs():  # one token of every answer in each step; the answers share the KV blocks of the clip
    answers[output.request_id] = answers.get(output.request_id, "") + output.text
for question, answer in answers.items():
    print(f"{question} {answer}")
