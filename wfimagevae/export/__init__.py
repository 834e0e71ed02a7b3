"""Trained networks as Hugging Face folders."""
