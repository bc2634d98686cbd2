"""A CUDA device that is not there, as far as the choice of kernels can see."""

import torch

from segue.kernels import dispatch

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def pretend(monkeypatch, architecture: str, capability: tuple[int, int], cudnn: int = 91501):
    monkeypatch.setattr(dispatch, "architecture", lambda device: architecture)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
