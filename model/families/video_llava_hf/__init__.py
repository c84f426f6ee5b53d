"""Video-LLaVA as converted for transformers (`-hf`): prompt, published files, verification."""
