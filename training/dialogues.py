"""Generates questions about a scene, in many wordings, with the one right answer to each.

Every answer names its thing by colour and shape, so that the next question can say "it". Other clips and questions
always have the same answer, `UNKNOWN`.
"""

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Literal, get_args

import numpy as np

from training.corpus import sampled_frames
from training.scenes import COLOUR_NAMES, MOTIONS, SHAPES, SIZES, ColourName, Scene, Thing, draw_scene, in_order
from training.wordings import (
    CLAUSES,
    FOLLOW_UPS,
    OFF_TOPIC,
    QUESTIONS,
    WHAT_ABOUT,
    WHICH_MOVES,
    WHICH_STILL,
)

UNKNOWN = "I only know clips of drawn shapes."

Kind = Literal[
    "colour",
    "shape",
    "size",
    "direction",
    "count",
    "exists",
    "which_moves",
    "appears",
    "vanishes",
    "first",
    "describe",
    "absent",
    "ambiguous",
    "follow_up",
    "off_topic",
    "other_clip",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
Asked = Literal["colour", "shape", "size", "direction", "appears", "vanishes"]
"""Questions about a single thing."""
ASKED: tuple[Asked, ...] = get_args(Asked)
Attribute = Literal["size", "colour", "shape", "motion"]
NUMBERS = ("no", "one", "two", "three")
MOVES = {"left": "moves left", "right": "moves right", "up": "moves up", "down": "moves down", "still": "stays still"}
NUMBER = re.compile(r"\d+\.\d")


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """One question and its right answer."""

    kind: Kind
    question: str
    answer: str
    moments: tuple[float, ...] = ()
    """The exact times of the events whose seconds the answer gives, in the order of its numbers."""
    interval: float = 0.0
    """Seconds between two sampled frames."""
    about: tuple[ColourName, ...] = ()
    """The colours of the things that the question is about."""

    def is_right(self, given: str) -> bool:
        """Return whether an answer is right: word for word, with seconds within one sampling interval."""
        if not self.moments:
            return given == self.answer
        times = [float(number) for number in NUMBER.findall(given)]
        return NUMBER.sub("", given) == NUMBER.sub("", self.answer) and all(
            abs(time - moment) <= self.interval + 0.05 for time, moment in zip(times, self.moments, strict=True)
        )


def sampled_seconds(scene: Scene) -> list[str]:
    """Return the times of the sampled frames as the prompt gives them."""
    return [str(float(np.round(np.float64(frame / scene.fps), 1))) for frame in sampled_frames(scene)]


def draw_dialogue(random: Random, scene: Scene | None, turns: int) -> list[Exchange]:
    """Generate `turns` questions about a clip with their answers; None is a clip without known shapes."""
    if scene is None:
        other = _Dialogue(random, draw_scene(random))
        return [
            Exchange(kind="other_clip", question=exchange.question, answer=UNKNOWN)
            for exchange in (other.next() for _ in range(turns))
        ]
    dialogue = _Dialogue(random, scene)
    return [dialogue.next() for _ in range(turns)]


def ask(random: Random, scene: Scene, kind: Kind) -> list[Exchange] | None:
    """Generate a short dialogue whose last question is of a kind; None if the scene has no such question."""
    dialogue = _Dialogue(random, scene)
    if kind == "follow_up":
        dialogue.next_of(random.choice(ASKED))
    exchange = dialogue.next_of(kind)
    return dialogue.exchanges if exchange else None


class _Dialogue:
    """A dialogue about one scene, and the thing that the last answer was about."""

    def __init__(self, random: Random, scene: Scene) -> None:
        self.random = random
        self.scene = scene
        self.things = in_order(scene.things)
        self.seconds = sampled_seconds(scene)
        self.exchanges: list[Exchange] = []
        self.focus: Thing | None = None
        self.topic: Asked | None = None

    def next(self) -> Exchange:
        """Generate any question that the scene and the dialogue so far allow."""
        while True:
            kind = self.random.choices(tuple(WEIGHTS), tuple(WEIGHTS.values()))[0]
            if exchange := self.next_of(kind):
                return exchange

    def next_of(self, kind: Kind) -> Exchange | None:
        """Generate a question of one kind; None if there is none."""
        before = self.focus, self.topic
        self.focus = self.topic = None
        exchange = ASKERS[kind](self, before) if kind not in ASKED else self._about_one(kind, before)
        if exchange:
            self.exchanges.append(exchange)
        else:
            self.focus, self.topic = before
        return exchange

    # Questions about one thing, which is named by its other attributes.

    def _about_one(self, kind: Asked, _: "_Before") -> Exchange | None:
        thing = self.random.choice(self.things)
        if kind in ("appears", "vanishes") and self.random.random() < 0.7:
            thing = self.random.choice([thing for thing in self.things if thing.life == kind] or [thing])
        names = self._references(thing, hidden=ASKED_ATTRIBUTE.get(kind))
        if not names:
            return None
        question = self._word(QUESTIONS[kind], self._noun_phrase(thing, self.random.choice(names)))
        return self._answered(kind, kind, thing, question)

    def _answered(self, kind: Kind, asked: Asked, thing: Thing, question: str) -> Exchange:
        self.focus, self.topic = thing, asked
        answer, moments = self._answer(asked, thing)
        return self._exchange(kind, question, answer, moments, about=[thing])

    def _answer(self, asked: Asked, thing: Thing) -> tuple[str, tuple[float, ...]]:
        if asked in ("appears", "vanishes"):
            return self._moment_answer(asked, thing)
        answers = {
            "colour": f"The {thing.shape} is {thing.colour}.",
            "shape": f"The {thing.colour} object is a {thing.shape}.",
            "size": f"The {_name(thing)} is {thing.size}.",
            "direction": f"The {_name(thing)} {MOVES[thing.motion]}.",
        }
        return answers[asked], ()

    def _moment_answer(self, asked: Asked, thing: Thing) -> tuple[str, tuple[float, ...]]:
        if thing.life == asked:
            answer = f"The {_name(thing)} {asked} at {self._event(thing)} seconds."
            return answer, (self.scene.event_seconds(thing),)
        always = {"appears": "is there from the start", "vanishes": "stays until the end"}
        return f"The {_name(thing)} {always[asked]}.", ()

    def _event(self, thing: Thing) -> str:
        """Return the time of the first sampled frame after a thing appeared or vanished, as the prompt gives it."""
        there = [thing.visible_at(self.scene.moment(frame)) for frame in sampled_frames(self.scene)]
        return self.seconds[there.index(thing.life == "appears")]

    def _references(self, thing: Thing, *, hidden: Attribute | None) -> list[tuple[Attribute, ...]]:
        """Return sets of attributes that no other thing of the scene shares; the empty set if the thing is alone."""
        free = [attribute for attribute in ATTRIBUTES if attribute != hidden]
        sets = [chosen for size in range(len(free) + 1) for chosen in combinations(free, size)]
        alone = [chosen for chosen in sets if self._matching(thing, chosen) == [thing]]
        if not alone:
            return []
        short = min(map(len, alone))
        return [chosen for chosen in alone if len(chosen) <= max(1, short) + (self.random.random() < 0.4)]

    def _matching(self, like: "Thing | _Wanted", attributes: Sequence[Attribute]) -> list[Thing]:
        return [other for other in self.things if all(_same(other, like, attribute) for attribute in attributes)]

    def _noun_phrase(self, thing: Thing, attributes: Sequence[Attribute]) -> str:
        noun = (
            thing.shape if "shape" in attributes else self.random.choice(("object", "object", "thing", "shape", "one"))
        )
        words = [str(getattr(thing, word)) for word in ("size", "colour") if word in attributes]
        clause = [self.random.choice(CLAUSES[thing.motion])] if "motion" in attributes else []
        return " ".join(("the", *words, noun, *clause))

    # Other questions.

    def _count(self, _: "_Before") -> Exchange:
        if self.random.random() < 0.65:
            answer = f"There {_be(len(self.things))} {NUMBERS[len(self.things)]} object{_s(len(self.things))}."
            question = self._word(QUESTIONS["count"], self.random.choice(("objects", "things")))
            return self._exchange("count", question, answer, about=self.things)
        shape = self.random.choice(SHAPES)
        found = [thing for thing in self.things if thing.shape == shape]
        answer = f"There {_be(len(found))} {NUMBERS[len(found)]} {shape}{_s(len(found))}."
        return self._exchange("count", self._word(QUESTIONS["count"], f"{shape}s"), answer, about=found)

    def _exists(self, _: "_Before") -> Exchange:
        like: Thing | _Wanted = self.random.choice(self.things)
        attributes = self._some(("size", "colour", "shape"))
        if self.random.random() < 0.5:
            like = self._changed(like, self.random.choice(attributes))
        phrase = _plain_phrase(like, attributes)
        found = self._matching(like, attributes)
        question = self._word(QUESTIONS["exists"], f"a {phrase}")
        answer = f"Yes, there is a {phrase}." if found else f"No, there is no {phrase}."
        return self._exchange("exists", question, answer, about=found)

    def _which_moves(self, _: "_Before") -> Exchange:
        motion = self.random.choice(MOTIONS)
        if self.random.random() < 0.6:
            motion = self.random.choice(self.things).motion
        found = [thing for thing in self.things if thing.motion == motion]
        moves = MOVES[motion] if len(found) < 2 else MOVES[motion].replace("s ", " ", 1)
        names = [f"the {_name(thing)}" for thing in found] or ["no object"]
        listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        if len(found) == 1:
            self.focus, self.topic = found[0], "direction"
        question = self._word(WHICH_STILL if motion == "still" else WHICH_MOVES, motion)
        return self._exchange("which_moves", question, f"{_capital(listed)} {moves}.", about=found)

    def _first(self, _: "_Before") -> Exchange | None:
        events = sorted(
            (self.seconds.index(self._event(thing)), thing.colour) for thing in self.things if thing.life != "always"
        )
        question = self._word(QUESTIONS["first"], "")
        if not events:
            return self._exchange("first", question, "Nothing appears or vanishes.")
        if len(events) > 1 and events[0][0] == events[1][0]:
            return None
        (thing,) = (thing for thing in self.things if thing.colour == events[0][1])
        self.focus = thing
        return self._exchange("first", question, f"First, the {_name(thing)} {thing.life}.", about=[thing])

    def _describe(self, _: "_Before") -> Exchange:
        phrases, moments = [], []
        for thing in self.things:
            phrase = f"a {thing.size} {_name(thing)} that {MOVES[thing.motion]}"
            if thing.life != "always":
                phrase += f" and {thing.life} at {self._event(thing)} seconds"
                moments.append(self.scene.event_seconds(thing))
            phrases.append(phrase)
        count = len(phrases)
        listed = ", and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))
        if count == 1:
            self.focus = self.things[0]
        answer = f"There {_be(count)} {NUMBERS[count]} object{_s(count)}: {listed}."
        question = self._word(QUESTIONS["describe"], "")
        return self._exchange("describe", question, answer, tuple(moments), about=self.things)

    def _absent(self, _: "_Before") -> Exchange | None:
        asked = self.random.choice(ASKED)
        attributes = self._some(("size", "colour", "shape"), hidden=ASKED_ATTRIBUTE.get(asked))
        like = self._changed(self.random.choice(self.things), self.random.choice(attributes))
        if self._matching(like, attributes):
            return None
        question = self._word(QUESTIONS[asked], f"the {_plain_phrase(like, attributes)}")
        return self._exchange("absent", question, f"There is no {_plain_phrase(like, attributes)}.")

    def _ambiguous(self, _: "_Before") -> Exchange | None:
        asked = self.random.choice(ASKED)
        given: tuple[Attribute, ...] = ("size", "shape")
        free = [attribute for attribute in given if attribute != ASKED_ATTRIBUTE.get(asked)]
        sets = [chosen for size in range(1, len(free) + 1) for chosen in combinations(free, size)]
        several = [(like, chosen) for like in self.things for chosen in sets if len(self._matching(like, chosen)) > 1]
        if not several:
            return None
        like, attributes = self.random.choice(several)
        found = self._matching(like, attributes)
        question = self._word(QUESTIONS[asked], f"the {_plain_phrase(like, attributes)}")
        answer = f"There is more than one {_plain_phrase(like, attributes)}."
        return self._exchange("ambiguous", question, answer, about=found)

    def _follow_up(self, before: "_Before") -> Exchange | None:
        thing, topic = before
        if thing is None:
            return None
        others = [other for other in self.things if other is not thing]
        if topic and others and self.random.random() < 0.3:
            other = self.random.choice(others)
            names = [name for name in self._references(other, hidden=ASKED_ATTRIBUTE.get(topic)) if name]
            if names:
                phrase = self._noun_phrase(other, self.random.choice(names))
                return self._answered("follow_up", topic, other, self._word(WHAT_ABOUT, phrase))
        asked = self.random.choice([asked for asked in ASKED if asked != topic])
        return self._answered("follow_up", asked, thing, self._word(FOLLOW_UPS[asked], ""))

    def _off_topic(self, _: "_Before") -> Exchange:
        if self.random.random() < 0.2:
            letters = string.ascii_lowercase + "     "
            question = "".join(self.random.choices(letters, k=self.random.randint(2, 40)))
            return self._exchange("off_topic", self._in_any_style(question.strip() or "?"), UNKNOWN)
        return self._exchange("off_topic", self._in_any_style(self.random.choice(OFF_TOPIC)), UNKNOWN)

    def _exchange(
        self, kind: Kind, question: str, answer: str, moments: tuple[float, ...] = (), *, about: Sequence[Thing] = ()
    ) -> Exchange:
        interval = self.scene.num_frames / len(self.seconds) / self.scene.fps
        colours = tuple(thing.colour for thing in about)
        return Exchange(kind=kind, question=question, answer=answer, moments=moments, interval=interval, about=colours)

    # Wordings.

    def _some(self, among: Sequence[Attribute], *, hidden: Attribute | None = None) -> list[Attribute]:
        free = [attribute for attribute in among if attribute != hidden]
        chosen = self.random.sample(free, self.random.choices(range(1, len(free) + 1), (5, 4, 2)[: len(free)])[0])
        return [attribute for attribute in among if attribute in chosen]

    def _changed(self, thing: "Thing | _Wanted", attribute: Attribute) -> "_Wanted":
        """Return a thing that differs in one attribute, and may not exist in the scene."""
        values: dict[Attribute, str] = {
            "size": thing.size,
            "colour": thing.colour,
            "shape": thing.shape,
            "motion": thing.motion,
        }
        values[attribute] = self.random.choice([value for value in ATTRIBUTES[attribute] if value != values[attribute]])
        return _Wanted(**values)

    def _word(self, templates: Sequence[str], phrase: str) -> str:
        return self._in_any_style(self.random.choice(templates).replace("{x}", phrase))

    def _in_any_style(self, question: str) -> str:
        """Vary a question as people type it: capitals, question mark, polite words."""
        random = self.random
        if random.random() < 0.3:
            question = question.replace("colour", "color")
        if random.random() < 0.15:
            question = (
                random.choice(("please tell me: ", "tell me, ", "can you tell me: ", "so, ", "and ", "ok, ")) + question
            )
        elif random.random() < 0.08:
            question = f"{question}, please"
        if random.random() < 0.12:
            question = f"{question} in {random.choice(('the video', 'this video', 'the clip', 'this clip'))}"
        match random.choices(("sentence", "lower", "upper", "title"), (60, 25, 12, 3))[0]:
            case "sentence":
                question = _capital(question)
            case "upper":
                question = question.upper()
            case "title":
                question = question.title()
        return question + random.choices(("?", "", ".", "!", " ?", "??", "?!"), (62, 24, 6, 3, 3, 1, 1))[0]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The attributes of a thing in a question."""

    size: str
    colour: str
    shape: str
    motion: str


_Before = tuple[Thing | None, Asked | None]


def _same(one: "Thing | _Wanted", other: "Thing | _Wanted", attribute: Attribute) -> bool:
    return bool(getattr(one, attribute) == getattr(other, attribute))


def _plain_phrase(like: "Thing | _Wanted", attributes: Sequence[Attribute]) -> str:
    words = [getattr(like, word) for word in ("size", "colour") if word in attributes]
    return " ".join((*words, like.shape if "shape" in attributes else "object"))


def _name(thing: Thing) -> str:
    return f"{thing.colour} {thing.shape}"


def _be(count: int) -> str:
    return "is" if count == 1 else "are"


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


ATTRIBUTES: dict[Attribute, Sequence[str]] = {"size": SIZES, "colour": COLOUR_NAMES, "shape": SHAPES, "motion": MOTIONS}
ASKED_ATTRIBUTE: dict[str, Attribute] = {"colour": "colour", "shape": "shape", "size": "size", "direction": "motion"}

WEIGHTS: dict[Kind, float] = {
    "colour": 8,
    "shape": 8,
    "size": 7,
    "direction": 11,
    "count": 6,
    "exists": 7,
    "which_moves": 9,
    "appears": 7,
    "vanishes": 7,
    "first": 5,
    "describe": 8,
    "absent": 6,
    "ambiguous": 8,
    "follow_up": 18,
    "off_topic": 3,
}
"""Relative frequency of each kind of question."""
ASKERS: dict[str, Callable[[_Dialogue, _Before], Exchange | None]] = {
    "count": _Dialogue._count,
    "exists": _Dialogue._exists,
    "which_moves": _Dialogue._which_moves,
    "first": _Dialogue._first,
    "describe": _Dialogue._describe,
    "absent": _Dialogue._absent,
    "ambiguous": _Dialogue._ambiguous,
    "follow_up": _Dialogue._follow_up,
    "off_topic": _Dialogue._off_topic,
}
