"""Training: the loop over epochs, augmentation and checkpoints. A backend trains one epoch at a time."""
