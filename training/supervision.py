"""Dense supervision of the encoder: heads that say what each stage of it should know, thrown away afterwards.

Frames meet in the global token alone, so motion and time must pass through it. Losses on the token alone leave
motion at chance; what works is to ask every stage for its part: patches for what they show, the global blocks'
keys (after their convolution over time) for how it moves, the token and the queries for the answer, and both for the
share of frames in which a thing is seen: with that, and whether it came or went, goes the moment. Shapes come
fast once the first blocks are asked for the directions of edges, as in MaskFeat (Wei et al. 2022).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.families.videochat.network import VideoChatNetwork
from training.corpus import Labels
from training.world import COLOUR_NAMES, LIVES, MAX_THINGS, MOTIONS, NUM_SAMPLED, SHAPES, SIZES

NUM_COLOURS = len(COLOUR_NAMES)
PATCH_FIELDS = {"colour": NUM_COLOURS + 1, "shape": len(SHAPES) + 1, "size": len(SIZES) + 1}
TOKEN_FIELDS = {"motion": len(MOTIONS) + 1, "shape": len(SHAPES) + 1, "life": len(LIVES) + 1, "event": NUM_SAMPLED}
SLOT_FIELDS = {
    "present": 2,
    "shape": len(SHAPES),
    "size": len(SIZES),
    "motion": len(MOTIONS),
    "life": len(LIVES),
    "event": NUM_SAMPLED,
}
"""What the query of each colour is asked for; the same head reads all of them."""
CLIP_FIELDS = {"count": 4, "first": NUM_COLOURS + 1}
"""What the query after those is asked for: the number of things, and the colour of the first to come or go."""
NUM_DIRECTIONS = 8
"""Bins over the half circle, in which the directions of edges are counted."""
EDGE_BLOCK, OUTLINE_BLOCK = 1, 2
"""Blocks of the trunk, from 0, that are asked for the edges in a patch and for the outline of the thing it shows."""
BACKGROUND_WEIGHT = 0.05
UNCOUNTED = -100
"""The class that no loss counts."""


class Heads(nn.Module):
    """Linear readouts of every stage of the encoder."""

    def __init__(self, network: VideoChatNetwork) -> None:
        super().__init__()
        vision, width = network.config.vision, network.config.qformer.width
        self.edges = nn.Linear(vision.width, NUM_DIRECTIONS + 1)
        self.outline = nn.Linear(vision.width, NUM_DIRECTIONS)
        self.patch = nn.Linear(vision.width, sum(PATCH_FIELDS.values()) + 2)
        self.frame = nn.Linear(vision.width, NUM_COLOURS)
        self.keys = nn.ModuleList(nn.Linear(vision.width, len(MOTIONS) + 1) for _ in range(vision.num_global_blocks))
        self.token = nn.Linear(vision.width, NUM_COLOURS * sum(TOKEN_FIELDS.values()))
        self.slot = nn.Linear(width, sum(SLOT_FIELDS.values()))
        self.clip = nn.Linear(width, sum(CLIP_FIELDS.values()))
        self.token_seen = nn.Linear(vision.width, NUM_COLOURS)
        self.slot_seen = nn.Linear(width, 1)


@contextmanager
def fast_convolutions(network: VideoChatNetwork) -> Iterator[None]:
    """The depthwise convolutions as 27 shifted products: far faster than torch's own in a CPU's backward pass."""
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv3d)]
    for convolution in convolutions:
        convolution.forward = MethodType(_shifted, convolution)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for convolution in convolutions:
            del convolution.forward


def _shifted(self: nn.Conv3d, volume: Tensor) -> Tensor:
    # Channels last, as the tokens come: [B, T, H, W, C].
    tokens = volume.permute(0, 2, 3, 4, 1)
    _, frames, height, width, _ = tokens.shape
    padded = functional.pad(tokens, (0, 0, 1, 1, 1, 1, 1, 1))
    kernel = self.weight.flatten(1).T  # [27, C]
    assert self.bias is not None
    out: Tensor = self.bias
    for number in range(27):
        t, y, x = number // 9, number // 3 % 3, number % 3
        out = torch.addcmul(out, padded[:, t : t + frames, y : y + height, x : x + width], kernel[number])
    return out.permute(0, 4, 1, 2, 3)


@dataclass(slots=True)
class Seen:
    """What one pass through the encoder left behind for the heads to read."""

    blocks: list[Tensor] = field(default_factory=list)
    """Tokens [B * frames, patches + 1, C] after every block of the trunk."""
    keys: list[Tensor] = field(default_factory=list)
    """Keys [B, frames * (patches + 1), C] of every global block."""
    tokens: list[Tensor] = field(default_factory=list)
    """Tokens [B, frames * (patches + 1) + 1, C] after the norm that ends the encoder."""

    def clear(self) -> None:
        """Forget the pass before."""
        for kept in (self.blocks, self.keys, self.tokens):
            kept.clear()


@contextmanager
def watched(network: VideoChatNetwork) -> Iterator[Seen]:
    """What every pass leaves behind; to be cleared before each."""
    seen = Seen()
    hooks = [
        *(
            block.register_forward_hook(lambda _, __, x: seen.blocks.append(x))
            for block in network.visual_encoder.blocks
        ),
        *(
            block.get_submodule("attn").register_forward_pre_hook(lambda _, arguments: seen.keys.append(arguments[1]))
            for block in network.visual_encoder.gmhra
        ),
        network.ln_vision.register_forward_hook(lambda _, __, x: seen.tokens.append(x)),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(slots=True)
class Score:
    """Losses by name, and the share of right readouts."""

    losses: dict[str, Tensor] = field(default_factory=dict)
    right: dict[str, float] = field(default_factory=dict)

    def classes(
        self, name: str, logits: Tensor, target: Tensor, *, nothing: int | None = None, nothing_weight: float = 1.0
    ) -> None:
        """Cross-entropy; `nothing` is the class of what is not there, which counts less and as no success."""
        flat, wanted = logits.flatten(0, -2), target.flatten()
        weight = flat.new_ones(flat.shape[-1])
        counted = wanted != UNCOUNTED
        if nothing is not None:
            weight[nothing] = nothing_weight
            counted = counted & (wanted != nothing)
        if not counted.any():
            return
        self.losses[name] = functional.cross_entropy(flat, wanted, weight=weight, ignore_index=UNCOUNTED)
        self.right[name] = float((flat.argmax(-1) == wanted)[counted].float().mean())


def look(heads: Heads, labels: Labels, pixels: Tensor, seen: Seen) -> Score:
    """How well the trunk sees single frames [N, T, 3, S, S]: edges, outlines, what each patch and frame shows."""
    score = _patches(heads, labels, seen)
    grid = round((seen.blocks[0].shape[1] - 1) ** 0.5)
    owner, _ = patch_owner(labels, grid)
    owner = owner.flatten(0, 1)  # [N * T, patches]
    edges = edge_directions(pixels.flatten(0, 1), grid)  # [N * T, patches, directions]
    strength = edges.sum(-1, keepdim=True)
    wanted = torch.cat((edges / (strength + 0.5), strength.log1p()), dim=-1)
    read = heads.edges(seen.blocks[EDGE_BLOCK][:, 1:])
    score.losses["look.edges"] = 4 * functional.smooth_l1_loss(read, wanted, beta=0.1)
    shown = owner >= 0
    belongs = functional.one_hot(owner.clamp(min=0), MAX_THINGS) * shown[..., None]
    outlines = torch.einsum("npk,npd->nkd", belongs.float(), edges)
    outlines = outlines / (outlines.sum(-1, keepdim=True) + 0.5)
    wanted = outlines.gather(1, owner.clamp(min=0)[..., None].expand(-1, -1, NUM_DIRECTIONS))
    read = heads.outline(seen.blocks[OUTLINE_BLOCK][:, 1:])
    score.losses["look.outline"] = 20 * functional.smooth_l1_loss(read[shown], wanted[shown], beta=0.1)
    return score


def edge_directions(pictures: Tensor, grid: int) -> Tensor:
    """How strong the edges of each direction are in every patch: [N, 3, S, S] to [N, patches, directions]."""
    grey = functional.avg_pool2d(pictures.mean(1, keepdim=True), 3, stride=1, padding=1)
    across = functional.pad(grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2], (1, 1, 1, 1))
    down = functional.pad(grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1], (1, 1, 1, 1))
    strength = torch.hypot(across, down)
    place = torch.atan2(down, across) % torch.pi / torch.pi * NUM_DIRECTIONS
    below = place.floor()
    bins = grey.new_zeros(len(grey), NUM_DIRECTIONS, *grey.shape[2:])
    bins.scatter_add_(1, below.long() % NUM_DIRECTIONS, strength * (1 - place + below))
    bins.scatter_add_(1, (below.long() + 1) % NUM_DIRECTIONS, strength * (place - below))
    side = grey.shape[-1] // grid
    return functional.avg_pool2d(bins, side).flatten(2).transpose(1, 2) * side


def understand(heads: Heads, labels: Labels, seen: Seen) -> Score:
    """How well the encoder knows whole clips: its patches, the keys of its global blocks, and the global token."""
    score = _patches(heads, labels, seen)
    clips, num_frames = labels.visible.shape[0], labels.visible.shape[2]
    tokens = seen.tokens[0]
    frames = tokens[:, :-1].reshape(clips, num_frames, -1, tokens.shape[-1])
    owner, _ = patch_owner(labels, round((frames.shape[2] - 1) ** 0.5))
    moves = _by_owner(labels.motion, owner, len(MOTIONS))
    for number, (head, tapped) in enumerate(zip(heads.keys, seen.keys, strict=True)):
        patches = tapped.reshape(frames.shape)[:, :, 1:]
        score.classes(f"keys.{number}", head(patches), moves, nothing=len(MOTIONS), nothing_weight=BACKGROUND_WEIGHT)
    # The token: every colour's thing, none as a class of its own.
    out = heads.token(tokens[:, -1]).reshape(clips, NUM_COLOURS, -1)
    for (name, classes), logits in zip(TOKEN_FIELDS.items(), out.split(list(TOKEN_FIELDS.values()), -1), strict=True):
        target = _by_colour(getattr(labels, name), labels.colour)
        if name == "event":
            score.classes(f"token.{name}", logits, target.where(target >= 0, UNCOUNTED))
        else:
            target = target.where(target >= 0, classes - 1)
            score.classes(f"token.{name}", logits, target, nothing=classes - 1, nothing_weight=0.3)
    read = heads.token_seen(tokens[:, -1])
    score.losses["token.seen"] = 10 * functional.smooth_l1_loss(read, _share_seen(labels), beta=0.1)
    return score


def tell(heads: Heads, labels: Labels, features: Tensor) -> Score:
    """How well the queries' features [N, queries, C] tell of clips: one query a colour, and one for the clip."""
    score = Score()
    out = heads.slot(features[:, :NUM_COLOURS])
    for (name, _), logits in zip(SLOT_FIELDS.items(), out.split(list(SLOT_FIELDS.values()), -1), strict=True):
        target = _by_colour(labels.colour if name == "present" else getattr(labels, name), labels.colour)
        if name == "present":
            target = (target >= 0).long()
        score.classes(f"slot.{name}", logits, target.where(target >= 0, UNCOUNTED))
    read = heads.slot_seen(features[:, :NUM_COLOURS]).squeeze(-1)
    score.losses["slot.seen"] = 10 * functional.smooth_l1_loss(read, _share_seen(labels), beta=0.1)
    count, first = heads.clip(features[:, NUM_COLOURS]).split(list(CLIP_FIELDS.values()), dim=-1)
    score.classes("clip.count", count, (labels.colour >= 0).sum(1))
    score.classes("clip.first", first, first_event(labels), nothing=NUM_COLOURS)
    return score


def _share_seen(labels: Labels) -> Tensor:
    """The share of frames [N, colours] in which a thing of each colour is seen."""
    return _by_colour(labels.visible.float().mean(-1), labels.colour).clamp(min=0)


def _patches(heads: Heads, labels: Labels, seen: Seen) -> Score:
    """What each patch shows and which way its centre lies; the colours that each class token has in its frame."""
    score = Score()
    clips, num_frames = labels.visible.shape[0], labels.visible.shape[2]
    tokens = seen.tokens[0]
    frames = tokens[:, :-1].reshape(clips, num_frames, -1, tokens.shape[-1])
    owner, offset = patch_owner(labels, round((frames.shape[2] - 1) ** 0.5))
    *parts, shift = heads.patch(frames[:, :, 1:]).split([*PATCH_FIELDS.values(), 2], dim=-1)
    for (name, classes), logits in zip(PATCH_FIELDS.items(), parts, strict=True):
        target = _by_owner(getattr(labels, name), owner, classes - 1)
        score.classes(f"patch.{name}", logits, target, nothing=classes - 1, nothing_weight=BACKGROUND_WEIGHT)
    shown = owner >= 0
    score.losses["patch.centre"] = functional.smooth_l1_loss(shift[shown], offset[shown])
    there = torch.zeros(clips, NUM_COLOURS + 1, num_frames)
    colour = labels.colour.where(labels.colour >= 0, NUM_COLOURS)
    there.scatter_(1, colour[..., None].expand(-1, -1, num_frames), labels.visible.float())
    there = there[:, :NUM_COLOURS].transpose(1, 2)  # [B, frames, colours]
    read = heads.frame(frames[:, :, 0])
    score.losses["frame.colours"] = 2 * functional.binary_cross_entropy_with_logits(read, there)
    score.right["frame.colours"] = float(((read > 0) == (there > 0)).all(-1).float().mean())
    return score


def patch_owner(labels: Labels, grid: int) -> tuple[Tensor, Tensor]:
    """Which thing each patch of each frame shows [N, frames, patches], -1 for none, and how far its centre is."""
    places = (torch.arange(grid) + 0.5) / grid
    patches = torch.stack(torch.meshgrid(places, places, indexing="xy"), -1).reshape(-1, 2)  # [patches, (x, y)]
    offset = labels.centre[:, :, :, None] - patches  # [N, things, frames, patches, 2]
    distance = offset.norm(dim=-1).masked_fill(~labels.visible[..., None], 9.0)
    nearest = distance.min(dim=1)
    reach = labels.radius.gather(1, nearest.indices.flatten(1)).reshape(nearest.indices.shape) + 0.3 / grid
    owner = nearest.indices.where(nearest.values < reach, -1)
    index = nearest.indices[:, None, ..., None].expand(-1, -1, -1, -1, 2)
    return owner, offset.gather(1, index).squeeze(1) * grid / 2


def first_event(labels: Labels) -> Tensor:
    """Colour [N] of the first thing to appear or vanish; `NUM_COLOURS` where none does or two do at once."""
    moments = labels.event.where(labels.event >= 0, NUM_SAMPLED)
    order = moments.sort(dim=1)
    alone = (order.values[:, 0] < NUM_SAMPLED) & (order.values[:, 0] < order.values[:, 1])
    colour = labels.colour.gather(1, order.indices[:, :1]).squeeze(1)
    tied = (order.values[:, 0] < NUM_SAMPLED) & ~alone
    return colour.where(alone, NUM_COLOURS).where(~tied, UNCOUNTED)


def _by_owner(values: Tensor, owner: Tensor, background: int) -> Tensor:
    """A property [N, things] of the thing that each patch [N, frames, patches] shows."""
    spread = values.gather(1, owner.clamp(min=0).flatten(1)).reshape(owner.shape)
    return spread.where(owner >= 0, background)


def _by_colour(values: Tensor, colour: Tensor) -> Tensor:
    """A property [N, things] in the order of colours [N, colours]; -1 where there is no such thing."""
    out = values.new_full((len(values), NUM_COLOURS + 1), -1)
    out.scatter_(1, colour.where(colour >= 0, NUM_COLOURS), values)
    return out[:, :NUM_COLOURS]
