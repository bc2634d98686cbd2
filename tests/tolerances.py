"""The one table of tolerances.  Each line carries its argument; none changes in the commit that changes the code it judges.

``from tests.tolerances import NAME`` works in every test.  Bounds are relative to the largest magnitude of the reference
unless the line says otherwise.  fp32 rounds to 2^-24 = 6e-8 of a value, bf16 to 2^-9 = 2e-3.
"""

# An exponential average in fp32 against fp64: each of n steps rounds twice, old errors decay, so n <= 20 steps stay below.
FP32_AVERAGE = 40 * 6e-8

# A loss of a small network in fp32 against fp64: outputs agree to 2e-5 of their size, and a square doubles that.
FP32_NETWORK_LOSS = 4e-5

# Weights after twelve steps of AdamW, captured with its fused kernel and not: each step moves a weight by about the rate of
# 3e-3 times a quotient of two sums that differ by roundings; the smallest gradients turn these into a hundredth of a step.
FP32_CAPTURED_RUN = 1e-2

# Gradients, or weights after five steps of AdamW, from the same samples added in another order: a gradient differs by
# roundings, 1e-6 of its largest over a hundred tokens; a step divides by its root mean square, which turns tiny ones more.
FP32_SUMMED_PARTS = 2e-3

# Outputs of a small network in fp32 for a batch and for each of its rows: sums in another order, over less than ten layers.
FP32_BATCHED = 2e-5

# The same elementwise drawing in batches of another size: vector and scalar code paths of exp, pow and atan2 may differ by
# ten roundings, and the edge ramps (one pixel wide, 14 pixels per unit) amplify them; absolute, pixels in [-1, 1].
PIXELS_ANY_BATCH = 2e-5

# Mean pixel of an image on another machine: other math libraries differ by roundings, far below the four digits written
# down; absolute.
PIXELS_ANY_MACHINE = 1e-4

# Of single kernels: segue.kernels.judgement (error and bias) and segue.kernels.contracts, by which tuner and bench judge too.

# Latents of a whole guided run in fp32 through our rows against diffusers' own loop: networks that sum in another order agree
# to 1e-6 of their output, guidance multiplies that by at most the sum of its weights (10), and a run averages over steps.
ATTACHED_RUN = 2e-5

# The digest of a block in fp64: the longest sums have 6144 terms, each rounding to 2^-53.
FP64_DIGEST = 1e-12

# The digest of a block, in eps of the dtype: a state is rounded after each of three residuals and what is added to it a few
# times before, so an element errs by less than one eps, root mean square; a projection strays from that by four deviations
# once in 16000.
BLOCK_DIGEST = 4.0

# A run of 28 calls in one precision against fp64, root mean square, in eps of the dtype: an output errs by about an eps,
# guidance multiplies that by at most 5, and a run averages over its calls.
TRAJECTORY = 5.0
