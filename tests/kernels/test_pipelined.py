"""Products whose operands come by descriptors: the tiles of further steps are on their way while one is multiplied.

A compiler says nothing where it cannot arrange that, and the kernel takes about twice as long.
"""

import re

import pytest

from segue.kernels.catalogue import SIZES, cases
from segue.kernels.resources import Specialisation, case_launches, forms
from segue.kernels.triton_runtime import Launch, interpreting, triton

ARCHITECTURE = "sm_90"
# of every epilogue one
NAMES = ("grouped_linear, SD3.5-medium 1024", "linear_gelu, SD3.5-medium 1024", "linear_gated_residual, SD3.5-medium 1024")
NAMES += ("project_joint_heads, SD3.5-medium 1024",)


def launch_of(name: str) -> Launch:
    (case,) = (case for size in SIZES for case in cases(size) if case.name == name)
    (launch,) = (launch for launch in case_launches(case, ARCHITECTURE) if launch.name == "linear_kernel")
    return launch


@pytest.mark.skipif(triton is None or interpreting(), reason="needs Triton's compiler")
@pytest.mark.parametrize("name", NAMES)
def test_tiles_are_asked_for_ahead(name):
    """Each operand once for every stage of the pipeline: without one, once."""
    launch = launch_of(name)
    text = forms(Specialisation.of(launch, ARCHITECTURE), launch).asm["ptx"]
    assert launch.arguments["DESCRIPTORS"] and launch.stages > 2
    assert len(re.findall(r"cp\.async\.bulk\.tensor", text)) == 2 * launch.stages
