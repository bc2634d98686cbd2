"""Segue: a sampling engine for diffusion transformers."""
