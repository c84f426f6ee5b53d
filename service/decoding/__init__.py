"""The sandboxed decode child process, its protocol, and the parent that starts it."""
