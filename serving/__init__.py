"""Serving: pictures over HTTP, drawn by the step scheduler of an engine."""
