"""Guidance put into the weights: adapters by which one evaluation predicts a guided velocity."""
