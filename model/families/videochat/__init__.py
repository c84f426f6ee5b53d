"""VideoChat (arXiv:2305.06355): network, prompt, published files, verification."""
