"""Uploaded videos: receive, resume, fetch, prepare (decode and encode), retain, erase."""
