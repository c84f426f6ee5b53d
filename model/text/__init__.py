"""Conversations and their prompts, and the tokenizers of published checkpoints."""
