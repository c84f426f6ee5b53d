"""Video-ChatGPT (arXiv:2306.05424): network, prompt, published files, verification."""
