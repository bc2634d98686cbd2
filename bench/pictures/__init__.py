"""Pictures of what guidance does: the demo, quality against cost, and the estimates of a run call by call."""
