"""Learns the default model's vocabulary from its own dialogues, and writes it as a `tokenizer.model`."""

from collections.abc import Iterator, Sequence
from random import Random

from sentencepiece import sentencepiece_model_pb2 as protobuf
from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Core
from tokenizers import models as cores
from tokenizers.trainers import BpeTrainer

from model.text.sentencepiece import KINDS
from model.text.tokenizer import FIRST_PIECES, PRINTABLE, SPACE, Piece
from training.corpus import scene_of
from training.dialogues import draw_dialogue
from training.prompts import clip_of, conversation_about, example_texts

NUM_MERGED = 560
"""Pieces of more than one character."""
MAX_SECOND = 20
"""Whole seconds up to this one are one piece each, so that times are evenly spaced in a prompt."""
WORDS = Regex(rf"{SPACE}?[A-Za-z]+|{SPACE}?\d{{1,2}}|\.\d|###|</|.")
"""Boundaries that no piece crosses: words, whole seconds and tenths, and the separators of the prompt."""


def learn_pieces(seed: int, num_clips: int = 3000) -> list[Piece]:
    """Return specials, bytes, printable ASCII, and byte-pair pieces learned from dialogues about `num_clips` clips."""
    core = Core(cores.BPE())
    core.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    core.pre_tokenizer = pre_tokenizers.Split(WORDS, "isolated")
    trainer = BpeTrainer(
        vocab_size=len(PRINTABLE) + NUM_MERGED,
        initial_alphabet=list(PRINTABLE),
        limit_alphabet=len(PRINTABLE),
        show_progress=False,
    )
    core.train_from_iterator(_texts(seed, num_clips), trainer)
    ranked = sorted(core.get_vocab().items(), key=lambda item: item[1])
    merged = [piece for piece, _ in ranked if len(piece) > 1]
    merged += [second for second in (f"{SPACE}{second}" for second in range(MAX_SECOND + 1)) if second not in merged]
    return [
        *FIRST_PIECES,
        *(Piece(text=text, score=-float(rank)) for rank, text in enumerate(merged)),
        *(Piece(text=text, score=-float(len(merged))) for text in PRINTABLE),
    ]


def tokenizer_file(pieces: Sequence[Piece]) -> bytes:
    """Return the bytes of a `tokenizer.model` with these pieces."""
    types = {kind: number for number, kind in KINDS.items()}
    content: bytes = protobuf.ModelProto(
        pieces=[{"piece": piece.text, "score": piece.score, "type": types[piece.kind]} for piece in pieces],
        trainer_spec={"model_type": protobuf.TrainerSpec.BPE, "byte_fallback": True},
        normalizer_spec={"name": "identity", "remove_extra_whitespaces": False},
    ).SerializeToString()
    return content


def _texts(seed: int, num_clips: int) -> Iterator[str]:
    for number in range(num_clips):
        random = Random(f"{seed}:{number}:vocabulary")
        scene = scene_of(seed, number)
        clip = clip_of(scene, seconds=random.uniform(1, 20), fps=25.0)
        yield from example_texts(conversation_about(clip, draw_dialogue(random, scene, 8)))
