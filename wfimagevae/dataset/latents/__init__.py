"""Cached latents and text embeddings, read by memory map."""
