"""Verifies a model stage by stage against tensors that the original code computed."""
