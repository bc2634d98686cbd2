"""Every Triton kernel once at a small size: ``compute-sanitizer python -m segue.bench.kernel_probe``."""

import torch

from segue.kernels.catalogue import SIZES, Factory, cases


def main() -> None:
    """Launch, wait, and say how many ran; an invalid access fails in the sanitizer, not here."""
    device = torch.device("cuda")
    major, minor = torch.cuda.get_device_capability(device)
    chosen = [case for case in cases(SIZES[0]) if case.minimum_capability <= 10 * major + minor]
    for case in chosen:
        case.kernel(*case.arguments(Factory(device, torch.bfloat16)))
        torch.cuda.synchronize()
    print(f"{len(chosen)} kernels ran")


if __name__ == "__main__":
    main()
