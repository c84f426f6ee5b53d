"""The `reeltalk` commands on the server's side: serve, keys, checkpoints, demo, openapi."""
