"""How many nodes CUDA counts in a captured function."""

import ctypes
from collections.abc import Callable

import torch

WARM_UP_STEPS = 2


def captured_nodes(function: Callable[[], None]) -> int:
    """Nodes of the graph of ``function``, kernels and copies, as the CUDA runtime lists them."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_STEPS):
            function()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph, stream=stream):
        function()
    runtime = ctypes.CDLL(f"libcudart.so.{torch.version.cuda.split('.')[0]}")  # which PyTorch has loaded
    count = ctypes.c_size_t()
    status = runtime.cudaGraphGetNodes(ctypes.c_void_p(graph.raw_cuda_graph()), None, ctypes.byref(count))
    if status:
        raise RuntimeError(f"cudaGraphGetNodes failed with error {status}")
    return count.value
