"""A CUDA device that is not there, as far as the choice of kernels can see."""

import torch

from segue.kernels import dispatch, triton_runtime

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def pretend(monkeypatch, architecture: str, capability: tuple[int, int], cudnn: int = 91501):
    for module in (dispatch, triton_runtime):
        monkeypatch.setattr(module, "architecture", lambda device: architecture)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
