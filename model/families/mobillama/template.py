"""MobiLlama's prompts: the chat checkpoints' conversation with one example, and the base checkpoints' bare text."""

import re

from model.text.conversation import Conversation, Piece

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
"""The published system text; a session can replace it."""

EXAMPLE_QUESTION = "Got any creative ideas for a 10 year old’s birthday?"
EXAMPLE_ANSWER = (
    "Of course! Here are some creative ideas for a 10-year-old's birthday party:\n"
    "1. Treasure Hunt: Organize a treasure hunt in your backyard or nearby park. Create clues and riddles for the kids "
    "to solve, leading them to hidden treasures and surprises.\n"
    "2. Science Party: Plan a science-themed party where kids can engage in fun and interactive experiments. You can "
    "set up different stations with activities like making slime, erupting volcanoes, or creating simple chemical "
    "reactions.\n"
    "3. Outdoor Movie Night: Set up a backyard movie night with a projector and a large screen or white sheet. Create "
    "a cozy seating area with blankets and pillows, and serve popcorn and snacks while the kids enjoy a favorite movie "
    "under the stars.\n"
    "4. DIY Crafts Party: Arrange a craft party where kids can unleash their creativity. Provide a variety of craft "
    "supplies like beads, paints, and fabrics, and let them create their own unique masterpieces to take home as party "
    "favors.\n"
    "5. Sports Olympics: Host a mini Olympics event with various sports and games. Set up different stations for "
    "activities like sack races, relay races, basketball shooting, and obstacle courses. Give out medals or "
    "certificates to the participants.\n"
    "6. Cooking Party: Have a cooking-themed party where the kids can prepare their own mini pizzas, cupcakes, or "
    "cookies. Provide toppings, frosting, and decorating supplies, and let them get hands-on in the kitchen.\n"
    "7. Superhero Training Camp: Create a superhero-themed party where the kids can engage in fun training activities. "
    "Set up an obstacle course, have them design their own superhero capes or masks, and organize superhero-themed "
    "games and challenges.\n"
    "8. Outdoor Adventure: Plan an outdoor adventure party at a local park or nature reserve. Arrange activities like "
    "hiking, nature scavenger hunts, or a picnic with games. Encourage exploration and appreciation for the outdoors.\n"
    "Remember to tailor the activities to the birthday child's interests and preferences. Have a great celebration!"
)
"""The example exchange that every prompt of FastChat's `one_shot` begins with (lm-sys/FastChat @ 0e6d3e4)."""

SEPARATOR = "###"
_SEPARATORS = re.compile(f"{SEPARATOR}+")


def neutralise(text: str) -> str:
    """Make text of a user or a client safe: it cannot imitate a turn. `###` becomes `# # #`."""
    return _SEPARATORS.sub(lambda found: " ".join(found[0]), text)


class OneShotTemplate:
    """FastChat's `one_shot`: the system text, one example exchange, then `\\n### Human: …\\n### Assistant: …`."""

    stop: tuple[str, ...] = (SEPARATOR,)

    def render(self, conversation: Conversation) -> tuple[Piece, ...]:
        """Return the prompt as one text; the answer follows it."""
        assert not conversation.clips, "the model sees no videos"
        text = (neutralise(conversation.system) or SYSTEM) + _said("user", EXAMPLE_QUESTION)
        text += _said("assistant", EXAMPLE_ANSWER)
        turns = (_said(turn.role, neutralise(turn.text)) for turn in conversation.turns)
        return (f"{text}{''.join(turns)}\n{SEPARATOR} Assistant:",)


class PlainTemplate:
    """The texts of a conversation one after the other, each on lines of its own; the answer continues the last one."""

    stop: tuple[str, ...] = ()

    def render(self, conversation: Conversation) -> tuple[Piece, ...]:
        """Return the prompt as one text; the answer follows it."""
        assert not conversation.clips, "the model sees no videos"
        texts = (conversation.system, *(turn.text for turn in conversation.turns))
        return ("\n".join(filter(None, texts)),)


def _said(role: str, text: str) -> str:
    return f"\n{SEPARATOR} {'Human' if role == 'user' else 'Assistant'}: {text}"
