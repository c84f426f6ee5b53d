"""The fine-tuned sizes of Video-LLaMA-2; two of the six parts are LAVIS's and not on the Hub."""

from model.checkpoints.catalogue import PublishedCheckpoint

_LICENCE = "non-commercial; ImageBind's CC BY-NC-SA 4.0, the language model Llama 2's"
_NOTE = (
    "eva_vit_g.pth and blip2_pretrained_flant5xxl.pth are not on the Hub: download them from "
    "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/."
)

RELEASES = tuple(
    PublishedCheckpoint(
        name=f"video-llama-2-{size}",
        size=size,
        licence=_LICENCE,
        repositories={".": f"DAMO-NLP-SG/Video-LLaMA-2-{size.upper()}-Finetuned"},
        note=_NOTE,
    )
    for size in ("7b", "13b")
)
