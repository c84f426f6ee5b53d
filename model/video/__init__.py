"""Video files as tensors: frame rules, containers, timestamps, and pixel preprocessing."""
