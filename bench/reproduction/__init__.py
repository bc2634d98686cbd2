"""The claims of papers checked by measurement: what was run, what came out, and where it agrees."""
