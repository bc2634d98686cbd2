"""Calibration: at which calls a rule's branches are evaluated, chosen by finished samples."""
