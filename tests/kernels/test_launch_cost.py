"""What a launch costs, read from its arguments, against what the catalogue counts from the sizes of the same operations."""

import ast
from pathlib import Path

import pytest
import torch

from segue.kernels.catalogue import SIZES, Case, Factory, cases
from segue.kernels.launch_cost import ATTENTION, COSTS, MEMORY, launch_cost
from segue.kernels.triton_runtime import Launch, trace_launches

KERNELS = Path(__file__).parents[2] / "kernels"
# of a call, between patches and tokens: their product is counted, what is around it is not
ENDS = ("embed_patches", "project", "combine_then_project", "readout_update")
CASES = [case for size in SIZES for case in cases(size) if not case.vendor]


def launches_of(case: Case) -> list[Launch]:
    with trace_launches("sm_90") as launches:
        case.kernel(*case.arguments(Factory(torch.device("meta"), case.dtype)))
    return launches


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_launches_of_an_operation_cost_what_the_catalogue_counts(case):
    costs = [launch_cost(launch) for launch in launches_of(case)]
    assert sum(cost.bytes for cost in costs) == case.bytes_moved
    if costs[0].work != MEMORY:
        assert sum(cost.flops for cost in costs) == case.flops
    elif case.operation in ENDS:
        size = case.size
        assert sum(cost.flops for cost in costs) == 2 * size.samples * size.tokens * size.width * size.outputs
    else:
        assert not any(cost.flops for cost in costs)
    for cost in costs:
        products = {MEMORY: 0, ATTENTION: 2}.get(cost.work, 1)  # scores, and their product with the values
        assert products * sum(2 * a * b * c * d for a, b, c, d in cost.problems) == (cost.flops if products else 0)


def launched_names(source: str) -> set[str]:
    """The kernels that a file starts: first arguments of ``launch(...)``."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return {call.args[0].id for call in calls if isinstance(call.func, ast.Name) and call.func.id == "launch"}


def test_every_kernel_that_is_launched_anywhere_has_a_cost():
    launched = set().union(*(launched_names(path.read_text()) for path in KERNELS.glob("*.py")))
    assert launched == {*COSTS, "copy_tile"}  # that tries descriptors, once in a process and in no step


def test_a_kernel_without_an_entry_is_refused():
    def other_kernel():
        pass

    with pytest.raises(ValueError, match=r"kernel other_kernel has no entry in kernels/launch_cost\.py"):
        launch_cost(Launch(other_kernel, (1,), {}, 4, 1))
