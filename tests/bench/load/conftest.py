"""A small network for servers under load."""

import pytest
import torch

from segue.bench.cases import BenchModel, Workload
from segue.bench.load.drawings import Drawings

MODEL = "sit-s/2@64:32"


@pytest.fixture(scope="session")
def drawings() -> Drawings:
    return Drawings(Workload.make(BenchModel.parse(MODEL), 1, torch.device("cpu"), torch.float32))
