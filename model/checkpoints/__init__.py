"""Files of weights: as published, as on the Hugging Face Hub, and in our own converted folder."""
