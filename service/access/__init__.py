"""API keys, callers, scopes and limits, and the middleware that authenticates requests."""
