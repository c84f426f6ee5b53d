"""Checking an installed model, stage by stage, against what the original code computed."""
