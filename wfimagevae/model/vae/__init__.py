"""Variational autoencoders for images."""
