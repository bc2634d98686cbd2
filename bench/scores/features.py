"""What scores are computed from: features and logits as matrices, checked, in fp64 on the host."""

from torch import Tensor, isfinite


def check_features(features: Tensor, what: str, least: int = 2) -> Tensor:
    """Features [N, F] in fp64 on the CPU.

    ``TypeError`` for anything else than a tensor; ``ValueError`` for another shape, fewer than ``least`` rows, or values that
    are not finite.
    """
    if not isinstance(features, Tensor):
        raise TypeError(f"{what} must be a tensor [N, F], got a {type(features).__name__}")
    if features.dim() != 2 or not features.shape[1]:
        raise ValueError(f"{what} must have shape [N, F], got {list(features.shape)}")
    if len(features) < least:
        raise ValueError(f"{what} must hold at least {least} samples, got {len(features)}")
    if not features.is_floating_point():
        raise TypeError(f"{what} must be of a floating-point dtype, got {features.dtype}")
    wrong = ~isfinite(features).all(dim=1)
    if wrong.any():
        raise ValueError(f"{what} must be finite, and sample {int(wrong.nonzero()[0])} is not")
    return features.detach().double().cpu()


def check_pair(features: Tensor, reference: Tensor, least: int = 2) -> tuple[Tensor, Tensor]:
    """Both sides of a comparison by :func:`check_features`, with the same number of features."""
    generated, real = check_features(features, "features", least), check_features(reference, "the reference", least)
    if generated.shape[1] != real.shape[1]:
        raise ValueError(f"both sides must have the same features, got {generated.shape[1]} and {real.shape[1]}")
    return generated, real
