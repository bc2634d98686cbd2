"""What the program sets before torch is loaded: how waiting threads wait, and which libraries tell errors alone."""

import logging

import pytest

from segue.__main__ import share_cores
from segue.engine.cli.library_messages import QUIET, quiet_libraries


@pytest.mark.parametrize(
    ("arguments", "environment", "spins"),
    [
        (["sample", "-g", "cfg"], {}, "3000"),
        (["bench", "demo", "--out", "demo.png"], {}, "3000"),
        (["bench", "step"], {}, None),  # it times, and its rows would no longer be those of the process as it is set outside
        (["sample"], {"GOMP_SPINCOUNT": "7"}, "7"),
        (["sample"], {"OMP_WAIT_POLICY": "active"}, None),
        (["sample"], {"KMP_BLOCKTIME": "200"}, None),
        ([], {}, "3000"),
    ],
)
def test_threads_sleep_soon_unless_something_else_is_said_or_time_is_measured(arguments, environment, spins):
    share_cores(arguments, environment)
    assert environment.get("GOMP_SPINCOUNT") == spins


def test_libraries_tell_errors_alone_unless_they_are_asked_for_more():
    before = {name: logging.getLogger(name).level for name in QUIET}
    try:
        quiet_libraries({"TRANSFORMERS_VERBOSITY": "info"})
        assert {name: logging.getLogger(name).level for name in QUIET} == before
        quiet_libraries({})
        for name in QUIET:
            logger = logging.getLogger(name)
            assert logger.isEnabledFor(logging.ERROR) and not logger.isEnabledFor(logging.WARNING)
        assert not {"diffusers", "transformers", "segue"} & set(QUIET)  # what they say to users is heard
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
