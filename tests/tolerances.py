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

# A kernel against fp64: at most this many times the error that PyTorch makes in the same precision (design section 8).
KERNEL_AGAINST_EAGER = 2.0

# Added to that bound, in roundings of the output dtype (eps of the largest magnitude): where eager happens to be exact, a
# kernel may still round its output once and sum in another order.
KERNEL_FLOOR = 2.0

# e4m3 has three mantissa bits: rounding to nearest errs by at most 2^-4 of a value, plus fp32 rounding of the value itself.
FP8_STEP = 2**-4 * 1.001
