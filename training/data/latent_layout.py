"""The layout of stored latents that REPA and SiT's descendants train on: a file of moments for each image, and their labels.

``vae-sd/00012/img-mean-std-00012345.npy`` holds mean and standard deviation of the VAE's posterior, [2 C, H, W] fp32, and
``vae-sd/dataset.json`` the labels by these names; ``images/00012/img00012345.png`` may hold the images.  Source:
sihyun-yu/REPA, ``preprocessing/dataset_tools.py`` and ``dataset.py``.
"""

from pathlib import Path

FEATURES, IMAGES = "vae-sd", "images"
RECORD = "encode.json"  # what a folder of `segue encode` was made of
SCALE, BIAS = "latents_scale", "latents_bias"  # keys beside the labels, by channel: latents of a network = z * scale + bias
SD_SCALE, SD_CHANNELS = 0.18215, 4  # sd-vae-ft, where nothing is stated
PER_FOLDER = 1000


def moments_name(item: int) -> str:
    """The name of the moments of image ``item`` in ``vae-sd``."""
    return f"{item // PER_FOLDER:05d}/img-mean-std-{item:08d}.npy"


def image_name(item: int) -> str:
    """The name of image ``item`` in ``images``."""
    return f"{item // PER_FOLDER:05d}/img{item:08d}.png"


def features_folder(folder: Path) -> Path:
    """The folder with the moments: ``vae-sd`` in ``folder``, or ``folder`` itself."""
    inside = folder / FEATURES
    return inside if inside.is_dir() else folder
