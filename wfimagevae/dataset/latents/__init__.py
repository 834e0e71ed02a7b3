"""Cached latents and text embeddings: on disk, and as data to train on."""
