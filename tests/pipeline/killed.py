"""Runs a pipeline and kills this process, as kill -9 does, before its n-th event.

Events are iterations of a training and the moments before a file is synced or renamed.

python killed.py FILE.yaml N
"""

import os
import signal
import sys

import torch

import train_ddp
from wfimagevae.engine.loop import Run


class Countdown:
    """Calls of some functions, counted together; 0 never kills."""

    def __init__(self, events: int):
        self.left = events

    def before(self, function):
        def counted(*arguments, **options):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return counted


if __name__ == "__main__":
    countdown = Countdown(int(sys.argv[2]))
    torch.set_num_threads(1)
    Run.advance = countdown.before(Run.advance)
    for name in ("fsync", "replace", "rename"):
        setattr(os, name, countdown.before(getattr(os, name)))
    sys.exit(train_ddp.main(["--pipeline", sys.argv[1]]))
