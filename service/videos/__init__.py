"""Videos: receive, resume or fetch the file, prepare it (decode and encode), retain and erase it."""
