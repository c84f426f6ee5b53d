"""`make bench`: one benchmark by its name, `http` where none is given. The others: `make bench ARGS=answers`.

Each prints a table, then one JSON line last.
"""

import sys
from collections.abc import Callable

from benchmarks import engine, http
from model.tiny import evaluate

BENCHMARKS: dict[str, Callable[[], None]] = {"http": http.main, "engine": engine.main, "answers": evaluate.main}


if __name__ == "__main__":
    name, *arguments = sys.argv[1:] or ["http"]
    if name not in BENCHMARKS:
        sys.exit(f"There is no benchmark {name!r}; there are: {', '.join(BENCHMARKS)}.")
    sys.argv = [f"python -m benchmarks {name}", *arguments]
    BENCHMARKS[name]()
