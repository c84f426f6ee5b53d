"""The commands that talk to a service; none of its own code is in here."""
