"""Durable state: records, logs and caches in Redis, files on disk or in a bucket. No other package uses Redis."""
