"""The network of Video-LLaVA `-hf`: its encoder is a plain CLIP, without attention over time."""

from model.networks.clip import ClipEncoder
from model.networks.video_llava import VideoLlavaConfig, VideoLlavaNetwork


class VideoLlavaHFNetwork(VideoLlavaNetwork):
    """All modules of one Video-LLaVA `-hf` model, with initial values."""

    def __init__(self, config: VideoLlavaConfig) -> None:
        super().__init__(config, ClipEncoder(config.vision, activation=config.activation))
