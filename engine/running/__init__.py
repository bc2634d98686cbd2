"""A run: the program of a plan, its graphs, the combination of branches and the loop."""
