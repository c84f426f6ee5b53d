"""Text: conversations and their prompts, and the tokenizers of the published checkpoints."""
