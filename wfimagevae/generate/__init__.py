"""From a trained network to samples: autoencoders, generators, prompts, cached latents."""
