"""Benchmarks: cases, timing, cost model, report."""
