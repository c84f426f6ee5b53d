"""VideoChat's encoder with the published arithmetic, operation by operation, on the weights of our network.

It has eager attention, scaled queries, every product that the original computes, and no fused kernels. It is a
reference for tests and measurements only.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.families.videochat.gmhra import GlobalAttention, GlobalTokenBlock
from model.families.videochat.network import VideoChatNetwork
from model.families.videochat.vision import VisionEncoder
from model.networks.eva_vit import Attention, Block


def plain_tokens(network: VideoChatNetwork, pixel_values: Tensor) -> Tensor:
    """Compute the same as `VideoChatNetwork.see`: frames [B, T, 3, H, W] to tokens [B, T * (patches + 1) + 1, C]."""
    vision, norm = network.visual_encoder, network.ln_vision
    x = torch.cat(_trunk_and_token(vision, pixel_values), dim=1)
    return functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def _trunk_and_token(vision: VisionEncoder, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """The patch and class tokens of all frames [B, L, C], and the global token [B, 1, C]."""
    num_clips, num_frames = pixel_values.shape[:2]
    x = _embed(vision, pixel_values)  # [B*T, 1 + patches, C]
    token = vision.gmhra_cls_token.repeat(num_clips, 1, 1)
    first_global = len(vision.blocks) - len(vision.gmhra)
    for number, block in enumerate(vision.blocks):
        x = _block(block, x)
        if number >= first_global:
            frames = x.clone().view(num_clips, num_frames, *x.shape[1:])
            token = _global_block(vision.gmhra[number - first_global], token, frames)
    return x.reshape(num_clips, -1, x.shape[-1]), token


def _embed(vision: VisionEncoder, pixel_values: Tensor) -> Tensor:
    proj = vision.patch_embed.proj
    kernel, size = proj.weight.unsqueeze(2), vision.config.patch_size
    volume = functional.conv3d(pixel_values.transpose(1, 2), kernel, proj.bias, stride=(1, size, size))
    patches = volume.permute(0, 2, 3, 4, 1).flatten(2, 3).flatten(0, 1)  # [B*T, patches, C]
    return torch.cat((vision.cls_token.expand(len(patches), -1, -1), patches), dim=1) + vision.pos_embed


def _block(block: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(block, Block)
    x = x + _attention(block.attn, block.norm1(x))
    added: Tensor = block.mlp.fc2(functional.gelu(block.mlp.fc1(block.norm2(x))))
    return x + added


def _attention(attention: Attention, x: Tensor) -> Tensor:
    bias = torch.cat((attention.q_bias, torch.zeros_like(attention.v_bias), attention.v_bias))
    qkv = functional.linear(x, attention.qkv.weight, bias)
    qkv = qkv.reshape(*x.shape[:2], 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv[0], qkv[1], qkv[2]  # each [F, heads, N, C/heads]
    q = q * q.shape[-1] ** -0.5
    weights = (q @ k.transpose(-2, -1)).softmax(dim=-1)
    out: Tensor = attention.proj((weights @ v).transpose(1, 2).reshape(x.shape))
    return out


def _global_block(block: nn.Module, token: Tensor, frames: Tensor) -> Tensor:
    assert isinstance(block, GlobalTokenBlock)
    frames = block.ln_3(frames)  # [B, T, 1 + patches, C]
    patches = frames[:, :, 1:]
    grid = math.isqrt(patches.shape[2])
    volume = patches.reshape(*patches.shape[:2], grid, grid, -1).permute(0, 4, 1, 2, 3).contiguous()
    volume = volume + functional.conv3d(volume, block.dpe.weight, block.dpe.bias, padding=1, groups=volume.shape[1])
    tokens = torch.cat((frames[:, :, :1], volume.permute(0, 2, 3, 4, 1).flatten(2, 3)), dim=2).flatten(1, 2)
    token = token + _global_attention(block.attn, block.ln_1(token), tokens)
    added: Tensor = block.mlp.c_proj(functional.gelu(block.mlp.c_fc(block.ln_2(token))))
    return token + added


def _global_attention(attention: GlobalAttention, x: Tensor, tokens: Tensor) -> Tensor:
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    q, k, v = (
        functional.linear(rows, weight, bias).reshape(*rows.shape[:2], attention.num_heads, -1).transpose(1, 2)
        for rows, weight, bias in zip((x, tokens, tokens), weights, biases, strict=True)
    )  # [B, heads, 1 or L, C/heads]
    q = q * q.shape[-1] ** -0.5
    shares = (q @ k.transpose(-2, -1)).softmax(dim=-1)
    out: Tensor = attention.out_proj((shares @ v).transpose(1, 2).flatten(2))
    return out
