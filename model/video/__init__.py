"""Decodes video files into pixel values: frame rules, containers, timestamps, and preprocessing."""
