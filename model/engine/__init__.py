"""The engine: continuous batching of many sequences on one language model. No HTTP, no Redis, no asyncio."""
