"""What a network regresses to: the velocity, plainly or extrapolated from a weak signal, and the terms beside it."""
