"""The `reeltalk` commands of the server: serve, keys, checkpoints, demo, openapi."""
