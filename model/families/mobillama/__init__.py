"""MobiLlama (arXiv:2402.16840): network, prompts, published files, verification. A language model without videos."""
