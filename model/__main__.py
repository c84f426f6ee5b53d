"""`python -m model VIDEO QUESTION …` asks questions about a video file, in one conversation, without a server."""

import argparse
import sys
from pathlib import Path

import torch

from model.engine.config import PromptTooLong
from model.families import UnknownFamily, family_names, load_family
from model.offline import Offline, watch
from model.text.conversation import Conversation, Turn
from model.text.tokenizer import TokenizerError
from model.video.spec import VideoError
from model.weights import WeightsError


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m model", description=__doc__)
    parser.add_argument("video", type=Path)
    parser.add_argument("question", nargs="+")
    parser.add_argument("--family", default="videochat", choices=family_names())
    parser.add_argument("--checkpoint", type=Path, default=None, help="a checkpoint folder (default: the small model)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default=None, choices=("float32", "bfloat16", "float16"))
    arguments = parser.parse_args()
    try:
        _answer(arguments)
    except (WeightsError, TokenizerError, UnknownFamily, VideoError, PromptTooLong, OSError) as error:
        sys.exit(f"reeltalk: {error}")


def _answer(arguments: argparse.Namespace) -> None:
    family = load_family(
        arguments.family,
        checkpoint=arguments.checkpoint,
        device=arguments.device,
        dtype=None if arguments.dtype is None else getattr(torch, arguments.dtype),
    )
    offline = Offline(family)
    clip, features = watch(family, arguments.video)
    turns: list[Turn] = []
    for question in arguments.question:
        turns.append(Turn(role="user", text=question))
        offline.add("answer", Conversation(clips=(clip,), turns=tuple(turns)), [features])
        answer = ""
        for output in offline.outputs():
            print(output.text, end="", flush=True)
            answer += output.text
        print()
        turns.append(Turn(role="assistant", text=answer))


if __name__ == "__main__":
    main()
