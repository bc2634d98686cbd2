"""The Ray cluster that a command runs on: one that is there, or one of this machine that ends with the command."""

import logging
import math
import os
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from importlib.util import find_spec
from typing import Any

ADDRESS_VARIABLE = "RAY_ADDRESS"  # Ray's own


def check_installed() -> None:
    """Raise ``ValueError`` where Ray is not installed."""
    if find_spec("ray") is None:
        raise ValueError("Ray is not installed: pip install 'segue[ray]', or leave --ray out")


@contextmanager
def on_cluster(address: str | None = None, cpus: float | None = None) -> Iterator[Mapping[str, float]]:
    """Connect to ``address``, or that of ``RAY_ADDRESS``, else start Ray here with ``cpus``; yields the cluster's resources.

    A connection that the process has already is used, and left as it is.  Workers import this package from where this process
    does, and begin in another folder.  Raises ``ValueError`` where Ray is not installed or
    no cluster answers.
    """
    check_installed()
    import ray

    if ray.is_initialized():
        yield ray.cluster_resources()
        return
    address = address or os.environ.get(ADDRESS_VARIABLE)
    own: dict[str, Any] = {"address": address}
    if not address:
        own = {"address": "local", "include_dashboard": False, "num_cpus": None if cpus is None else math.ceil(cpus)}
    try:
        with chdir(sysconfig.get_path("stdlib")):  # Ray puts the folder that it starts in before all others on workers' path
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **own)
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(f"no Ray cluster at {address or 'this machine'}: {' '.join(str(error).split())}") from None
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def check_resources(kind: str, cpus: float, gpus: float | None) -> None:
    """Raise ``ValueError`` with the value unless a process, of which ``kind`` is the name, can have so much of a machine."""
    for name, value in {"cpus": cpus, "gpus": gpus}.items():
        if value is not None and not 0 <= value < float("inf"):
            raise ValueError(f"{name} of a {kind} must be a number from 0, got {value}")


def gpus_of_each(gpus: float | None, device: str | None, resources: Mapping[str, float]) -> float:
    """How many GPUs a process has: as many as were asked for, else one where there are any and ``device`` is not a CPU."""
    if gpus is not None:
        return gpus
    return float(resources.get("GPU", 0) > 0 and not (device or "cuda").startswith("cpu"))
