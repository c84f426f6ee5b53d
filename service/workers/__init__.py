"""Worker processes: the messages that go in and out, the pool that keeps them alive, and the worker itself."""
