"""Trains on Modal, on one machine of 8 GPUs, for as long as it takes.

    pip install modal
    modal volume put wfvae2-image photos train && modal volume put wfvae2-image held_out val
    modal run --detach examples/cluster/modal_train.py

A function lives for a day at most: ten minutes before that, or when Modal takes the machine back
(SIGINT), the training saves and ends, and goes on in the next call. What it wrote is in the volume.
"""

import os
import subprocess

import modal

SECONDS, DRAIN = 24 * 3600, 600
SETTINGS = {
    "TRAIN_IMAGE_DIR": "/data/train",
    "EVAL_IMAGE_DIR": "/data/val",
    "OUTPUT_DIR": "/data/results",
    "EXP_NAME": "wfvae2-image",
    "RESUME_CKPT": "auto",
    "MAX_RESTARTS": "3",
}

app = modal.App("wfvae2-image")
volume = modal.Volume.from_name("wfvae2-image", create_if_missing=True)
image = modal.Image.from_dockerfile("Dockerfile")


@app.function(
    gpu="H100:8", cpu=64, timeout=SECONDS, retries=10, image=image, volumes={"/data": volume}
)
def train() -> None:
    """Trains until it is finished, or until this call is to end and another one goes on."""
    command = ["bash", "/app/train_wfimagevae.sh"]
    process = subprocess.Popen(command, env=os.environ | SETTINGS, start_new_session=True)
    is_late = False
    try:
        process.wait(SECONDS - DRAIN)
    except subprocess.TimeoutExpired:
        is_late = True
    finally:
        process.terminate()  # SIGTERM: save and end; nothing where it has ended
        process.wait()
        volume.commit()
    if is_late:
        train.spawn()
    elif process.returncode:
        raise SystemExit(process.returncode)  # which Modal tries again


@app.local_entrypoint()
def main() -> None:
    """Starts the training, which goes on without this terminal (--detach)."""
    train.spawn()
