"""Files in which weights come: published ones, those of the Hub, and our own converted folder."""
