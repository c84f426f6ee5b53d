"""Video-LLaVA, the original (arXiv:2311.10122): network, prompt, published files, verification."""
