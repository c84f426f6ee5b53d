"""The sockets: HTTP in and out, Redis, processes. Holds no tensor; only `workers.worker` imports torch."""
