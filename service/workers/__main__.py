"""A worker's process: `python -m service.workers FILE_DESCRIPTOR ROLE:NUMBER`; the second argument is for `ps`."""

import gc
import signal
import sys
from multiprocessing.connection import Connection

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the API process decides when to stop
    # What torch and transformers leave behind, 350,000 objects, is there to stay. To look through it again and again
    # while it comes is a fifth of the start; later, frozen, it is not looked through either (0.2 s each time).
    gc.disable()

    from service.workers.worker import main

    main(Connection(int(sys.argv[1])))
