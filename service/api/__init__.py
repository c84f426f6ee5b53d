"""HTTP in and out: translation only. Nothing here decides anything."""
