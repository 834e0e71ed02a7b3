"""Trains a wavelet image VAE: `train_ddp.py --task vae`.

torchrun --nproc_per_node 4 train_image_ddp.py --image_path photos/ --eval_image_path held_out/
"""

import sys

from train_ddp import main
from wfimagevae.command_line import run_cli

if __name__ == "__main__":
    sys.exit(run_cli(lambda argv: main(["--task", "vae", *(argv or sys.argv[1:])]), dated=True))
