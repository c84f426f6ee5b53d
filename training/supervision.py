"""Supervises every stage of the encoder with linear heads, which are discarded after training.

Frames interact in the global token only, so motion and time must pass through it. With losses on the token alone,
motion stays at chance. It works to supervise every stage: patches predict what they show; the global blocks' keys,
after their convolution over time, predict motion; the token and the queries predict all properties, and the share of
frames in which a thing is visible, from which the time of an event follows. Shapes are learned fast once the first
blocks predict the directions of edges, as in MaskFeat (Wei et al. 2022).
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
from training.scenes import COLOUR_NAMES, LIVES, MAX_THINGS, MOTIONS, NUM_SAMPLED, SHAPES, SIZES

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
"""Classes that the query of each colour predicts, with one head for all colours."""
CLIP_FIELDS = {"count": 4, "first": NUM_COLOURS + 1}
"""Classes that the next query predicts: the number of things, and the colour of the first to appear or vanish."""
NUM_DIRECTIONS = 8
"""Number of bins for the directions of edges, over a half circle."""
EDGE_BLOCK, OUTLINE_BLOCK = 1, 2
"""Blocks of the trunk, from 0, that predict the edges in a patch, and the outline of the thing that it shows."""
BACKGROUND_WEIGHT = 0.05
UNCOUNTED = -100
"""The class that losses ignore."""


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
    """Compute depthwise convolutions as 27 shifted products, which is much faster in the backward pass on a CPU."""
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv3d)]
    for convolution in convolutions:
        convolution.forward = MethodType(_shifted, convolution)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for convolution in convolutions:
            del convolution.forward


def _shifted(self: nn.Conv3d, volume: Tensor) -> Tensor:
    # Channels last, like the tokens: [B, T, H, W, C].
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
class EncoderOutputs:
    """Outputs of the encoder's stages in one forward pass."""

    blocks: list[Tensor] = field(default_factory=list)
    """Tokens [B * frames, patches + 1, C] after every block of the trunk."""
    keys: list[Tensor] = field(default_factory=list)
    """Keys [B, frames * (patches + 1), C] of every global block."""
    tokens: list[Tensor] = field(default_factory=list)
    """Tokens [B, frames * (patches + 1) + 1, C] after the norm that ends the encoder."""

    def clear(self) -> None:
        """Remove the outputs of the last pass."""
        for kept in (self.blocks, self.keys, self.tokens):
            kept.clear()


@contextmanager
def recorded_outputs(network: VideoChatNetwork) -> Iterator[EncoderOutputs]:
    """Record the outputs of forward passes within the block; clear them before each pass."""
    seen = EncoderOutputs()
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
    """Losses by name, and the share of right predictions."""

    losses: dict[str, Tensor] = field(default_factory=dict)
    right: dict[str, float] = field(default_factory=dict)

    def classes(
        self, name: str, logits: Tensor, target: Tensor, *, nothing: int | None = None, nothing_weight: float = 1.0
    ) -> None:
        """Add a cross-entropy loss; the class `nothing` has a lower weight, and is not counted as right."""
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


def look(heads: Heads, labels: Labels, pixels: Tensor, seen: EncoderOutputs) -> Score:
    """Score the trunk on single frames [N, T, 3, S, S]: edges, outlines, the content of each patch and frame."""
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
    """Return the strength of edges by direction in every patch: [N, 3, S, S] to [N, patches, directions]."""
    grey = functional.avg_pool2d(pictures.mean(1, keepdim=True), 3, stride=1, padding=1)
    across = functional.pad(grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2], (1, 1, 1, 1))
    down = functional.pad(grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1], (1, 1, 1, 1))
    strength = torch.hypot(across, down)
    bin_position = torch.atan2(down, across) % torch.pi / torch.pi * NUM_DIRECTIONS
    below = bin_position.floor()
    bins = grey.new_zeros(len(grey), NUM_DIRECTIONS, *grey.shape[2:])
    bins.scatter_add_(1, below.long() % NUM_DIRECTIONS, strength * (1 - bin_position + below))
    bins.scatter_add_(1, (below.long() + 1) % NUM_DIRECTIONS, strength * (bin_position - below))
    side = grey.shape[-1] // grid
    return functional.avg_pool2d(bins, side).flatten(2).transpose(1, 2) * side


def understand(heads: Heads, labels: Labels, seen: EncoderOutputs) -> Score:
    """Score the encoder on whole clips: its patches, the keys of its global blocks, and the global token."""
    score = _patches(heads, labels, seen)
    clips, num_frames = labels.visible.shape[0], labels.visible.shape[2]
    tokens = seen.tokens[0]
    frames = tokens[:, :-1].reshape(clips, num_frames, -1, tokens.shape[-1])
    owner, _ = patch_owner(labels, round((frames.shape[2] - 1) ** 0.5))
    moves = _by_owner(labels.motion, owner, len(MOTIONS))
    for number, (head, tapped) in enumerate(zip(heads.keys, seen.keys, strict=True)):
        patches = tapped.reshape(frames.shape)[:, :, 1:]
        score.classes(f"keys.{number}", head(patches), moves, nothing=len(MOTIONS), nothing_weight=BACKGROUND_WEIGHT)
    # The token predicts the thing of every colour, with a class for none.
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
    """Score the features [N, queries, C]: one query predicts each colour's thing, and one predicts the clip."""
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
    """Return the share of frames in which a thing of each colour is visible, [N, colours]."""
    return _by_colour(labels.visible.float().mean(-1), labels.colour).clamp(min=0)


def _patches(heads: Heads, labels: Labels, seen: EncoderOutputs) -> Score:
    """Score patches on their thing and the offset of its centre, and class tokens on the colours in their frame."""
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
    """Return the thing that each patch shows [N, frames, patches], -1 for none, and the offset of its centre."""
    centres = (torch.arange(grid) + 0.5) / grid
    patches = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1).reshape(-1, 2)  # [patches, (x, y)]
    offset = labels.centre[:, :, :, None] - patches  # [N, things, frames, patches, 2]
    distance = offset.norm(dim=-1).masked_fill(~labels.visible[..., None], 9.0)
    nearest = distance.min(dim=1)
    reach = labels.radius.gather(1, nearest.indices.flatten(1)).reshape(nearest.indices.shape) + 0.3 / grid
    owner = nearest.indices.where(nearest.values < reach, -1)
    index = nearest.indices[:, None, ..., None].expand(-1, -1, -1, -1, 2)
    return owner, offset.gather(1, index).squeeze(1) * grid / 2


def first_event(labels: Labels) -> Tensor:
    """Return the colour [N] of the first thing to appear or vanish; `NUM_COLOURS` for none, `UNCOUNTED` for a tie."""
    moments = labels.event.where(labels.event >= 0, NUM_SAMPLED)
    order = moments.sort(dim=1)
    alone = (order.values[:, 0] < NUM_SAMPLED) & (order.values[:, 0] < order.values[:, 1])
    colour = labels.colour.gather(1, order.indices[:, :1]).squeeze(1)
    tied = (order.values[:, 0] < NUM_SAMPLED) & ~alone
    return colour.where(alone, NUM_COLOURS).where(~tied, UNCOUNTED)


def _by_owner(values: Tensor, owner: Tensor, background: int) -> Tensor:
    """Return a property [N, things] of the thing that each patch [N, frames, patches] shows."""
    spread = values.gather(1, owner.clamp(min=0).flatten(1)).reshape(owner.shape)
    return spread.where(owner >= 0, background)


def _by_colour(values: Tensor, colour: Tensor) -> Tensor:
    """Return a property [N, things] in the order of colours [N, colours]; -1 for a colour without a thing."""
    out = values.new_full((len(values), NUM_COLOURS + 1), -1)
    out.scatter_(1, colour.where(colour >= 0, NUM_COLOURS), values)
    return out[:, :NUM_COLOURS]
