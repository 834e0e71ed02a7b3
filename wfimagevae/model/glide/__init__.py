"""GLIDE: text to image by Gaussian diffusion, under the names of its public weights."""
