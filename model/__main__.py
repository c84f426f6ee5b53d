"""`python -m model [VIDEO] QUESTION …` asks questions in one conversation, without a server.

The questions are about a video file, unless the family sees no videos.
"""

import argparse
import sys
from pathlib import Path

import torch

from model.engine.config import PromptTooLong
from model.families import UnknownFamily, family_names, load_family
from model.modalities import sees_videos
from model.offline import Offline, watch
from model.text.conversation import Conversation, Turn
from model.text.tokenizer import TokenizerError
from model.video.spec import VideoError
from model.weights import WeightsError


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m model", description=__doc__)
    parser.add_argument(
        "arguments",
        nargs="+",
        metavar="[VIDEO] QUESTION",
        help="a video file, unless the family sees no videos; questions",
    )
    parser.add_argument("--family", default="videochat", choices=family_names())
    parser.add_argument("--checkpoint", type=Path, default=None, help="a checkpoint folder (default: the small model)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default=None, choices=("float32", "bfloat16", "float16"))
    options = parser.parse_args()
    video, questions = _split(parser, options.family, options.arguments)
    try:
        _answer(options, video, questions)
    except (WeightsError, TokenizerError, UnknownFamily, VideoError, PromptTooLong, OSError) as error:
        sys.exit(f"reeltalk: {error}")


def _split(parser: argparse.ArgumentParser, family: str, arguments: list[str]) -> tuple[Path | None, list[str]]:
    """Return the video, which a family without videos does not have, and the questions; ends with a usage error."""
    first, *others = arguments
    if not sees_videos(family):
        if Path(first).is_file():
            parser.error(f"the family {family} sees no videos; leave out {first}")
        return None, arguments
    if not others:
        parser.error(f"the family {family} answers questions about a video; name a file and a question")
    return Path(first), others


def _answer(options: argparse.Namespace, video: Path | None, questions: list[str]) -> None:
    family = load_family(
        options.family,
        checkpoint=options.checkpoint,
        device=options.device,
        dtype=None if options.dtype is None else getattr(torch, options.dtype),
    )
    offline = Offline(family)
    watched = [] if video is None else [watch(family, video)]
    clips, features = tuple(clip for clip, _ in watched), [encoded for _, encoded in watched]
    turns: list[Turn] = []
    for question in questions:
        turns.append(Turn(role="user", text=question))
        offline.add("answer", Conversation(clips=clips, turns=tuple(turns)), features)
        answer = ""
        for output in offline.outputs():
            print(output.text, end="", flush=True)
            answer += output.text
        print()
        turns.append(Turn(role="assistant", text=answer))


if __name__ == "__main__":
    main()
