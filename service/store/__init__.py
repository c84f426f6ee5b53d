"""What outlives a process: Redis and the media store. The only room that speaks Redis."""
