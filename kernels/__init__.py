"""Fused operations, one per file: plain-PyTorch reference, Triton kernel and launcher side by side."""
