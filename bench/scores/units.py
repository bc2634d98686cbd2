"""The names of the scores, and their units, which say what their interval is and which way is better."""

ACCURACY, SUPERCLASS = "accuracy", "superclass accuracy"
FRECHET, KERNEL, INCEPTION = "Frechet distance per feature", "kernel distance", "inception score"
NEIGHBOURS = ("precision", "recall", "coverage", "density")
EFFECTIVE = "effective scale"

# a share of samples has Wilson's interval; more of a share or of a score is better, less of a distance, neither of a scale
SHARE, SCORE, DISTANCE, SCALE = "share", "score", "distance", "scale"
LEAST = {FRECHET: 0.0, "density": 0.0, INCEPTION: 1.0}  # below which a score cannot be, whatever its interval says
UNITS = {
    **dict.fromkeys((ACCURACY, SUPERCLASS, "precision", "recall", "coverage"), SHARE),
    **dict.fromkeys((INCEPTION, "density"), SCORE),
    **dict.fromkeys((FRECHET, KERNEL), DISTANCE),
    EFFECTIVE: SCALE,
}
