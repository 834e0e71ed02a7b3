"""Networks that predict velocities: transformer, U-Net, small CNN, MLP."""
