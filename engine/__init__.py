"""Rooms in the order in which a call walks down; beside them the engines, their core, and files that import nothing above."""
