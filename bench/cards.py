"""Cards that need not be here: what kernels are chosen by, and the rates that predictions are made with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from segue.kernels.attention import CUDNN_WITH_ODD_LENGTHS
from segue.kernels.triton_runtime import Chip, architecture, cudnn_version, processors

from .rows import Row, read_rows

MEASURED = "measured"
PRODUCT_OF = "large product, "  # before the dtype, in the rows of the ceilings
HOPPER = Chip("sm_90", 132, CUDNN_WITH_ODD_LENGTHS)  # H100 SXM and H200 have the same multiprocessors


@dataclass(frozen=True)
class Card:
    """``copy`` in bytes per second of a large copy, ``products`` in FLOP per second of a large product by dtype name.

    ``source`` says where the rates are from.
    """

    name: str
    chip: Chip
    copy: float
    products: Mapping[str, float] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self):
        if not self.copy > 0:
            raise ValueError(f"a card copies a positive number of bytes per second, got {self.copy}")
        for name, rate in self.products.items():
            if not rate > 0:
                raise ValueError(f"the rate of {name} products must be positive, got {rate}")

    def rate(self, dtype: str) -> float:
        """FLOP per second of a large product; raises ``ValueError`` for a dtype without one."""
        if dtype not in self.products:
            raise ValueError(f"no rate of {dtype} products is known for {self.name}; known: {', '.join(self.products)}")
        return self.products[dtype]


def _hopper(name: str, copy: float, product: float) -> Card:
    """bf16 and copy as measured on such cards; fp32 without TF32 and fp8 as the data sheet relates them to bf16 (67 and 1979
    of 989 TFLOP/s)."""
    rates = {"bfloat16": product, "float16": product, "float32": product * 67 / 989, "float8_e4m3fn": product * 1979 / 989}
    return Card(name, HOPPER, copy, rates, "bf16 product and copy measured on such cards, other dtypes by the data sheet")


CARDS = {"h100": _hopper("h100", 3.0e12, 798e12), "h200": _hopper("h200", 4.3e12, 790e12)}


def this_chip(device: torch.device) -> Chip:
    """The chip of a CUDA device of this machine, and whether PyTorch uses cuDNN on it."""
    return Chip(architecture(device), processors(device), cudnn_version() if torch.backends.cudnn.enabled else 0)


def find_card(name: str, ceilings: Path | None = None) -> Card:
    """A card by name, or with the ceilings that the newest rows of a result file measured.

    Raises ``ValueError`` for an unknown name, and for a file without ceilings of a card that is known or here.
    """
    if name == MEASURED:
        if ceilings is None:
            raise ValueError("--card measured needs --ceilings, a result file with rows of the ceilings")
        return measured_card(read_rows(ceilings), str(ceilings))
    if ceilings is not None:
        raise ValueError(f"--ceilings goes with --card measured, got --card {name}")
    if name not in CARDS:
        raise ValueError(f"unknown card {name!r}; known: {', '.join((*CARDS, MEASURED))}")
    return CARDS[name]


def measured_card(rows: list[Row], source: str) -> Card:
    """The card on which the last ceilings among ``rows`` were measured, with those rates."""
    found = [row for row in rows if row.suite == "kernels" and row.case == "ceilings"]
    if not found:
        raise ValueError(f"{source} holds no ceilings; segue bench kernels measures them")
    device = found[-1].device
    values = {row.variant: row.value * 1e12 for row in found if row.device == device}  # the last of each stays
    if "large copy" not in values:
        raise ValueError(f"{source} holds no large copy of {device}")
    products = {variant.removeprefix(PRODUCT_OF): value for variant, value in values.items() if variant.startswith(PRODUCT_OF)}
    return Card(device, _chip_of(device), values["large copy"], products, f"measured: {source}")


def card_of(device: str, rows: list[Row]) -> Card:
    """The card of a device's name: with the ceilings that ``rows`` of it hold, else as it is known."""
    if any(row.case == "ceilings" for row in rows):
        return measured_card(rows, "the same rows")
    known = _named(device)
    if known is None:
        raise ValueError(f"no rates of {device} are known, and there are no ceilings; known: {', '.join(CARDS)}")
    return known


def _named(device: str) -> Card | None:
    return next((card for name, card in CARDS.items() if name in device.lower()), None)


def _chip_of(device: str) -> Chip:
    """The chip of a card by the name that its driver gives it."""
    if known := _named(device):
        return known.chip
    if torch.cuda.is_available() and torch.cuda.get_device_name() == device:
        return this_chip(torch.device("cuda", torch.cuda.current_device()))
    raise ValueError(f"ceilings of {device} say nothing of a card: known are {', '.join(CARDS)} and the one that is here")
