"""Sources of samples, training objectives and the training loop."""
