"""Training machinery that knows nothing about images: loop, players, checkpoints, logs."""
