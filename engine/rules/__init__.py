"""Guidance rules: terms, windows, corrections, presets and how they are written."""
