"""The training recipe of the default model `tiny`. It is not part of the installed package."""
