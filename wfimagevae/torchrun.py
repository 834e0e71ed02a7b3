"""As torchrun, but what it runs has the last word: ``python -m wfimagevae.torchrun ...``.

Where a process fails, torchrun shows its own traceback behind that process's message.
"""

import wfimagevae.early  # noqa: F401, I001 - it means the trainings

import gc
import logging
import os
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == "__main__":
    logging.disable(logging.ERROR)
    # A store for each attempt: in one that they share, processes that start again meet their dead
    # predecessors, and wait; and machines number attempts differently.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    try:
        main()
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        sys.exit(code if code > 0 else 128 - code)
    except SignalException as error:  # what it ran has heard of it too
        sys.exit(128 + error.sigval)
    finally:
        gc.freeze()  # see `run_cli`
