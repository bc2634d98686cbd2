"""The herbarium data set, training objectives and the training loop."""
