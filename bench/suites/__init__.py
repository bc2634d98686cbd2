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

UNFINISHED = 3  # exit code of a run that left cases out for want of time; started again, it goes on

SIZES = frozenset({"models", "batches", "size", "steps", "dtype"})
READ = {  # the settings that a suite reads beside device, limits, repetitions and quick
    "cost": SIZES | {"rules"},
    "step": SIZES | {"rules"},
    "e2e": SIZES | {"rules", "peers"},
    "kernels": frozenset({"models"}),
    "cold": SIZES | {"rules"},
    "scaling": SIZES,
}
ONE_RULE = frozenset({"step", "cold"})


def check_read(names: tuple[str, ...], settings) -> None:
    """Raise ``ValueError`` for a setting that none of the suites reads, and for two rules where a suite measures one."""
    for field in sorted(SIZES | {"rules", "peers"}):
        value = getattr(settings, field)
        if value and not any(field in READ[name] for name in names):
            shown = ", ".join(map(str, value)) if isinstance(value, tuple) else value
            raise ValueError(f"no setting of {' or '.join(names)}: {field}, got {shown}")
    for name in names:
        if name in ONE_RULE and len(settings.rules) > 1:
            raise ValueError(f"{name} measures one rule, got {', '.join(settings.rules)}")


def run_suite(name: str, session) -> None:
    """Run the suite ``name`` of ``SUITES``; raises ``ValueError`` for another name."""
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}; known: {', '.join(SUITES)}")
    importlib.import_module(f".{name}", __package__).run(session)
