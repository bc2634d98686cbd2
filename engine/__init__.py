"""Guidance, schedules, solvers, plan, program, sampler, the Engine, its adapters and the command line."""
