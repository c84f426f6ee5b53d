"""Networks that transformers lacks. torch only: no files, no configuration look-ups, no service."""
