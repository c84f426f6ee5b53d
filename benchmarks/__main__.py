"""`make bench`: one benchmark by its name, `http` where none is given. The others: `make bench ARGS=answers`.

Each prints a table, then one JSON line last.
"""

import importlib
import sys

BENCHMARKS = {
    "http": "benchmarks.http",
    "overhead": "benchmarks.overhead",
    "engine": "benchmarks.engine",
    "decode": "benchmarks.decode",
    "answers": "training.evaluate",
    "encoder": "benchmarks.encoder",
    "published-size": "benchmarks.published_size",
}
"""Name to module; only the one that is run is imported, so that it wants no more than it uses."""


if __name__ == "__main__":
    name, *arguments = sys.argv[1:] or ["http"]
    if name not in BENCHMARKS:
        sys.exit(f"There is no benchmark {name!r}; there are: {', '.join(BENCHMARKS)}.")
    sys.argv = [f"python -m benchmarks {name}", *arguments]
    sys.exit(importlib.import_module(BENCHMARKS[name]).main())
