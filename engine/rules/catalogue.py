"""What every named rule computes, where it comes from, and how far it is the published one: what ``segue guidance`` lists."""

from dataclasses import dataclass
from typing import Literal

Standing = Literal["published", "carried over", "reconstruction", "own"]


@dataclass(frozen=True)
class Entry:
    """``formula`` in c, u, k (conditional, reference and weak prediction), D = c - u, g (guided); ``source`` an arXiv number.

    ``standing``: the published formula; carried over to other networks or predictions, as ``note`` says; a reconstruction of
    what could not be read; or this project's own.
    """

    formula: str
    source: str
    standing: Standing = "published"
    note: str = ""


ENTRIES: dict[str, Entry] = {
    "none": Entry("c", "", "own"),
    "cfg": Entry("u + s D", "2207.12598"),
    "slg": Entry("c + w (c - k), k without blocks", "2411.18664"),
    "cfgpp": Entry("u + s' D, s' = s t (1 - t') / (t - t')", "2406.08070", "carried over", "to rectified flow"),
    "tpg": Entry(
        "c + w (c - k), k with shuffled attention", "2506.10036", "carried over", "one shuffle, of attention's outputs"
    ),
    "pag": Entry("c + w (c - k), k with the identity as attention", "2403.17377"),
    "pag-image": Entry("as pag, attention to text kept", "2403.17377", "carried over", "as diffusers has it for SD3"),
    "stg": Entry("c + w (c - k), k without attention", "2411.18664"),
    "seg": Entry("c + w (c - k), k with mean queries", "2408.00760", "carried over", "the limit of infinite blur"),
    "s2": Entry("c + w (c - k), k without random blocks", "2508.12880", "reconstruction", "of which blocks are never left out"),
    "exit": Entry("c + w (c - k), k by an early-exit head", "2512.24176"),
    "ag": Entry("c + w (c - k), k of a weaker network", "2406.02507"),
    "nag": Entry("a norm(s z+ - (s - 1) z-) + (1 - a) z+ in attention", "2505.21179"),
    "gfcg": Entry("c + w (1 - p) (c - v_rival), and two swaps", "2411.15393", "reconstruction"),
    "icg": Entry("u + s (c - u), u of a random class", "2407.02687", "carried over", "never the own class"),
    "sgg": Entry("cfg above a noise level, slg below", "2603.20584"),
    "sgg-exit": Entry("cfg above a noise level, exit below", "2603.20584", "carried over", "from the rule of its training"),
    "zero-star": Entry(
        "a u + s (c - a u), a = <c, u> / <u, u>", "2503.18886", "published", "with zero_steps=1; 0 is usual here"
    ),
    "apg": Entry("c + (s - 1) (D_orthogonal + eta D_parallel)", "2410.02416"),
    "tcfg": Entry("u' + s (c - u'), u' = <u, e> e", "2503.18137"),
    "mambo": Entry("c + (s - 1) exp(-alpha norm(D) / norm(u)) D", "2508.03442"),
    "power-law": Entry("c + (s - 1) norm(D)^alpha D", "2502.07849", "carried over", "norms of outputs, not of scores"),
    "beta": Entry("u + s beta(p) D / norm(D)^gamma", "2502.10574"),
    "adg": Entry("c turned away from u by (s - 1) angles", "2506.11039"),
    "perp-neg": Entry("c + (s - 1) D + the other terms without their part along D", "2304.04968"),
    "fdg": Entry("c + (s - 1) (D_high + low D_low), a pyramid", "2506.19713"),
    "fresca": Entry("c + (s - 1) (low D_low + high D_high), Fourier", "2504.02154"),
    "fbg": Entry(
        "u + l D, l by a running posterior", "2506.06085", "carried over", "explains Euler's step, whatever the solver"
    ),
    "rescale": Entry("phi g std(c) / std(g) + (1 - phi) g", "2305.08891"),
    "renorm": Entry("g min(1, rho norm(c) / norm(g))", "2503.21758"),
    "energy": Entry("phi g norm(c) / norm(g) + (1 - phi) g", "2412.09966", "published", "without its percentiles"),
    "higs": Entry("x + w r H(x - average), clean estimates", "2509.22300", "reconstruction", "from public implementations"),
    "refine": Entry("high frequencies of the estimate times 1 + beta", "2512.05152", "reconstruction", "after EFDiT"),
    "tsr": Entry("noise times (n w^2 + 1) / (n w^2 / k + 1)", "2510.01184"),
    "epsilon": Entry("noise divided by a factor", "2308.15321"),
}
