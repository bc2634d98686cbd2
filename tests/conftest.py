"""Seeds that are printed, deterministic property tests, and GPU tests that skip themselves."""

import os
import sys
import zlib

import hypothesis
import pytest
import torch

SEED_VARIABLE = "SEGUE_TEST_SEED"
SAY_AT_ONCE = "SEGUE_SAY_AT_ONCE"
LONGEST_REASON = 300

# wall-clock deadlines would make results depend on the machine; a fixed search makes CI repeatable
hypothesis.settings.register_profile("segue", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("segue")


def pytest_configure():
    """Processes of their own interpret kernels: without what the interpreter does again and again."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        from quick_interpreter import make_quick

        make_quick()


def pytest_runtest_logreport(report):
    """With SEGUE_SAY_AT_ONCE a failure says its reason when it comes: a run that is ended early keeps what it had found."""
    if report.failed and SAY_AT_ONCE in os.environ and "PYTEST_XDIST_WORKER" not in os.environ:
        crash = getattr(report.longrepr, "reprcrash", None)
        reason = " ".join((crash.message if crash else str(report.longrepr)).split())
        print(f"\n{report.nodeid} FAILED: {reason[:LONGEST_REASON]}", file=sys.__stderr__, flush=True)


@pytest.fixture
def seed(request) -> int:
    """A seed of the test's own, printed with a failure; set SEGUE_TEST_SEED to try another."""
    value = int(os.environ.get(SEED_VARIABLE) or zlib.crc32(request.node.nodeid.encode()) & 0xFFFF)
    print(f"seed {value} ({SEED_VARIABLE}={value} repeats it)")
    return value


@pytest.fixture(autouse=True)
def single_precision():
    """Comparisons in fp32 are of fp32: PyTorch lets convolutions of a GPU use TF32 unless it is told otherwise."""
    from segue.bench.correctness import full_single

    with full_single():
        yield


def pytest_collection_modifyitems(items):
    """Tests marked ``gpu`` skip where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; none is present"))
