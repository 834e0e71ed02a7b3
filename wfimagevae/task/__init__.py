"""Tasks: they assemble objectives, data, evaluation and engine into a kind of training."""
