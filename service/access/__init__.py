"""API keys: callers, their scopes and limits, and the authentication middleware."""
