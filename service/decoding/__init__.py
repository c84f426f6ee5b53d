"""Decoding of uploads in sandboxed child processes: the child, its protocol, and the parent that starts it."""
