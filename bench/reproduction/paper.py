"""Published figures of SGG that our results stand beside; nothing here was measured by us.

Source: SGG (arXiv 2603.20584): its SiT-B/2 runs on ImageNet-256 of 400k steps, and SD3.5-medium on the prompts of COCO-1K.
"""

PAPER = "SGG, arXiv 2603.20584"

# by the weak signal of training
FID = {"none": 31.22, "uncond": 5.88, "branch": 16.02, "segmented": 4.58}

# HPSv2.1 and aesthetic score of SD3.5-medium, by the rule's name here
PREFERENCE = {
    "none": (21.20, 4.98),
    "cfg": (29.20, 5.28),
    "slg": (27.30, 5.71),
    "s2": (29.61, 5.34),
    "sgg": (29.74, 5.72),
}
PREFERENCE_SCORES = ("HPSv2.1", "aesthetic")
