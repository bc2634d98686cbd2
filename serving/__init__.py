"""Serving: pictures over HTTP, drawn by the step scheduler of an engine, and tables of pictures, on one machine or many."""
