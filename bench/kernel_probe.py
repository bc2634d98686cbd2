"""Every Triton kernel once at a small size: ``compute-sanitizer python -m segue.bench.kernel_probe``."""

import sys

import torch

from segue.kernels.catalogue import SIZES, Case, Factory, cases


def main() -> int:
    """Launch, wait, and say how many ran; an invalid access fails in the sanitizer, what raises is said, and gives 1."""
    device = torch.device("cuda")
    major, minor = torch.cuda.get_device_capability(device)
    chosen = [case for case in cases(SIZES[0]) if case.minimum_capability <= 10 * major + minor]
    failures = sum(not ran(case, device) for case in chosen)
    print(f"{len(chosen) - failures} of {len(chosen)} kernels ran")
    return int(failures > 0)


def ran(case: Case, device: torch.device) -> bool:
    """Whether a kernel ran to its end; says what it raised, so that the others are probed too."""
    try:
        case.kernel(*case.arguments(Factory(device, case.dtype)))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except Exception as error:
        print(f"{case.name}: FAILED, {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
