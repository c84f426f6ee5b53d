"""The default model's vocabulary: byte-pair pieces learned from its own dialogues, every byte to fall back on."""

from collections.abc import Iterator
from random import Random

from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Core
from tokenizers import models as cores
from tokenizers.trainers import BpeTrainer

from model.text.tokenizer import BOS, EOS, SPACE, UNKNOWN, Piece, byte_piece
from training.corpus import scene_of
from training.dialogues import draw_dialogue
from training.prompts import clip_of, conversation_about, example_texts

NUM_MERGED = 560
"""Pieces of more than one character."""
MAX_SECOND = 20
"""Up to here every whole second is one piece, so that times stand at even distances in a prompt."""
WORDS = Regex(rf"{SPACE}?[A-Za-z]+|{SPACE}?\d{{1,2}}|\.\d|###|</|.")
"""What a piece may not cross: words, whole seconds and tenths, and the marks of the prompt."""


def learn_pieces(seed: int, num_clips: int = 3000) -> list[Piece]:
    """Specials, bytes, printable ASCII, and the pieces that shorten the dialogues about so many clips most."""
    core = Core(cores.BPE())
    core.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    core.pre_tokenizer = pre_tokenizers.Split(WORDS, "isolated")
    printable = [SPACE, *map(chr, range(0x21, 0x7F))]
    trainer = BpeTrainer(
        vocab_size=len(printable) + NUM_MERGED,
        initial_alphabet=printable,
        limit_alphabet=len(printable),
        show_progress=False,
    )
    core.train_from_iterator(_texts(seed, num_clips), trainer)
    ranked = sorted(core.get_vocab().items(), key=lambda item: item[1])
    merged = [piece for piece, _ in ranked if len(piece) > 1]
    merged += [second for second in (f"{SPACE}{second}" for second in range(MAX_SECOND + 1)) if second not in merged]
    return [
        Piece(text=UNKNOWN, kind="unknown"),
        *(Piece(text=text, kind="control") for text in (BOS, EOS)),
        *(Piece(text=byte_piece(value), kind="byte") for value in range(256)),
        *(Piece(text=text, score=-float(rank)) for rank, text in enumerate(merged)),
        *(Piece(text=text, score=-float(len(merged))) for text in printable),
    ]


def _texts(seed: int, num_clips: int) -> Iterator[str]:
    for number in range(num_clips):
        random = Random(f"{seed}:{number}:vocabulary")
        scene = scene_of(seed, number)
        clip = clip_of(scene, seconds=random.uniform(1, 20), fps=25.0)
        yield from example_texts(conversation_about(clip, draw_dialogue(random, scene, 8)))
