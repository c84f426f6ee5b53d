"""VTimeLLM (arXiv:2311.18445): network, prompt, published files, verification."""
