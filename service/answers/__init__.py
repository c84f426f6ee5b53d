"""Questions and answers: sessions, generation, readers, take-over, admission, chat completions."""
