"""Networks that transformers lacks and that families share. They use torch only, and read no files."""
