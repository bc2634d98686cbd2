"""Who runs when, with which numbers: schedules, solvers, term weights, plans."""
