"""Entry point of a worker process: `python -m service.workers FILE_DESCRIPTOR ROLE:NUMBER`.

The file descriptor is the worker's end of the pipe. The second argument only labels the process in `ps`.
"""

import gc
import signal
import sys
from multiprocessing.connection import Connection

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the API process decides when to stop
    # Importing torch and transformers creates 350,000 objects that are never freed. Scanning them again and again takes
    # a fifth of the start-up time, so collection is off until the model is loaded; `main` then freezes them, which
    # saves 0.2 s in every later full collection.
    gc.disable()

    from service.workers.worker import main

    main(Connection(int(sys.argv[1])))
