"""The one table of tolerances.  Each line carries its argument; none changes in the commit that changes the code it judges.

``from tests.tolerances import NAME`` works in every test.  Bounds are relative to the largest magnitude of the reference
unless the line says otherwise.  fp32 rounds to 2^-24 = 6e-8 of a value, bf16 to 2^-9 = 2e-3.
"""

# One scalar reduction in fp32 against the same formula in fp64: pairwise sums of n <= 1e6 terms err by log2(n) roundings.
FP32_REDUCTION = 20 * 6e-8

# An exponential average in fp32 against fp64: each of n steps rounds twice, old errors decay, so n <= 20 steps stay below.
FP32_AVERAGE = 40 * 6e-8

# The same elementwise drawing in batches of another size: vector and scalar code paths of exp, pow and atan2 may differ by
# a few roundings, and the pixel-wide edge ramps amplify them by up to the image size; absolute, pixels in [-1, 1].
PIXELS_ANY_BATCH = 2e-4
