"""MobiLlama (arXiv:2402.16840): network, prompts, published files, verification. A language model without videos."""

from model.modalities import Modality

MODALITIES: tuple[Modality, ...] = ("text",)
"""Read by the service, which loads no model, before it starts the workers."""
