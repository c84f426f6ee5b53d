"""Worker processes: their configuration, the pipe protocol, the pool that runs them, and the code that runs in them."""
