"""ImageBind-LLM (arXiv:2309.03905): network, prompt, published files, verification."""
