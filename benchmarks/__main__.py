"""`make bench`: run one benchmark, by default `http`; `make bench ARGS=answers` runs another.

Each prints a table and then one line of JSON.
"""

import importlib
import sys

BENCHMARKS = {
    "http": "benchmarks.http",
    "overhead": "benchmarks.overhead",
    "readers": "benchmarks.readers",
    "engine": "benchmarks.engine",
    "decode": "benchmarks.decode",
    "answers": "training.evaluate",
    "encoder": "benchmarks.encoder",
    "published-size": "benchmarks.published_size",
}
"""The module of each benchmark; only the one that runs is imported, so that others may lack their packages."""


if __name__ == "__main__":
    name, *arguments = sys.argv[1:] or ["http"]
    if name not in BENCHMARKS:
        sys.exit(f"There is no benchmark {name!r}. Choose from: {', '.join(BENCHMARKS)}.")
    sys.argv = [f"python -m benchmarks {name}", *arguments]
    sys.exit(importlib.import_module(BENCHMARKS[name]).main())
