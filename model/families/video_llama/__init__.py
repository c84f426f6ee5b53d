"""Video-LLaMA (arXiv:2306.02858): network, prompts, published files, verification."""
