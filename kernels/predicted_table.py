"""The backends that a model of a card predicts to be faster than the vendor's, and the part of the time that they save.

By architecture, operation and shape class; no card has measured them, and what one measures takes their place.  Written by
``python -m segue.bench.predicted_choice``.
"""

PREDICTED: dict[str, dict[tuple[str, str], tuple[str, float]]] = {
    "sm_90": {
        ("grouped_linear", "m2048 in2048 out8192"): ("triton", 0.085),
        ("grouped_linear", "m2048 in8192 out2048"): ("triton", 0.130),
        ("project_joint_heads", "m2048 in2048 out8192"): ("triton", 0.194),
        ("project_joint_heads", "m8192 in2048 out8192"): ("triton", 0.076),
        ("project_joint_heads", "m8192 in4096 out8192"): ("triton", 0.026),
        ("project_slices", "m2048 in2048 out2048"): ("triton", 0.407),
        ("project_slices", "m8192 in2048 out2048"): ("triton", 0.023),
    },
}
