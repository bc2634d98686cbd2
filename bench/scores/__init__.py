"""Scores of samples against real ones, from features and logits that any extractor gives."""
