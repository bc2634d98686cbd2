"""The networks, their weights and the bundled checkpoints."""
