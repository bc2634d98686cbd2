"""The suites of the benchmark: one file each, with a function ``run(session)`` that measures its cases one by one."""

import importlib

SUITES = {
    "cost": "guided over unguided time, against the plan and the published algorithm",
    "step": "one call per live set, and the waterfall of optimisations",
    "e2e": "whole batches beside other implementations",
    "kernels": "every operation against the measured ceilings",
    "cold": "time to the first image in a fresh process",
    "scaling": "growth with calls, batch, tokens, depth and switch point",
}


def run_suite(name: str, session) -> None:
    """Run the suite ``name`` of ``SUITES``; raises ``ValueError`` for another name."""
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}; known: {', '.join(SUITES)}")
    importlib.import_module(f".{name}", __package__).run(session)
