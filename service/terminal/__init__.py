"""The client commands of `reeltalk`: ask, chat, videos, sessions, bench. They import no server code."""
