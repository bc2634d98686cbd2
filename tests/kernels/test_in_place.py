"""Kernels that write where they read: no thread writes what another has still to read.

Triton lets several threads hold an element where a block has fewer elements than threads, and each reads it for itself.  What
a GPU does with that depends on the order of its warps, and the interpreter has one thread: so this looks at the program.
"""

import re
from dataclasses import replace

import pytest

from segue.kernels.catalogue import SIZES, cases
from segue.kernels.resources import Specialisation, case_launches, forms
from segue.kernels.triton_runtime import Launch, interpreting, triton

ARCHITECTURE = "sm_90"
ORDER = re.compile(r"(?P<wait>\bbar\.sync\b)|(?P<read>\bld\.(?:\w+\.)*?global)|(?P<write>\bst\.(?:\w+\.)*?global)")


def updates() -> dict[str, Launch]:
    """Launches that solve in place, by kernel and by how many earlier rows they move on."""
    found: dict[str, Launch] = {}
    for case in (case for size in SIZES for case in cases(size) if case.operation in ("solver_update", "readout_update")):
        for launch in case_launches(case, ARCHITECTURE):
            uncounted = replace(launch, arguments=launch.arguments | {"COUNT": False})  # one program counts, and reads first
            for earlier in {launch.arguments["EARLIER"], 2}:  # as many as a lane of the engine keeps
                more = replace(uncounted, arguments=uncounted.arguments | {"EARLIER": earlier})
                found.setdefault(f"{launch.name} {earlier}", more)
    return found


@pytest.mark.skipif(triton is None or interpreting(), reason="needs Triton's compiler")
@pytest.mark.parametrize(
    "name", [f"{kernel} {earlier}" for kernel in ("solver_kernel", "readout_kernel") for earlier in range(3)]
)
def test_threads_wait_between_reading_and_writing(name):
    launch = updates()[name]
    text = forms(Specialisation.of(launch, ARCHITECTURE), launch).asm["ptx"]
    steps = [match.lastgroup for match in ORDER.finditer(text)]
    assert steps.count("write") >= 2 + launch.arguments["EARLIER"]
    for before, step in zip(steps, steps[1:], strict=False):
        if step == "write":
            assert before in ("wait", "write"), steps
