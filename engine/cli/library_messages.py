"""What the libraries underneath say for their own sake, kept out of the command line's output; what concerns a user stays."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

# who speaks of what a user of this program can do nothing about: binaries of torchao for other releases of PyTorch, classes of
# transformers and diffusers that are not used here, the length of a prompt before diffusers cuts it, which it tells by itself
QUIET = (
    "torchao",
    "torch.utils._pytree",
    "diffusers.quantizers.torchao.torchao_quantizer",
    "transformers.utils.import_utils",
    "transformers.tokenization_utils_base",
)
VERBOSITY = ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY")  # the libraries' own switches; who sets one hears everything


def quiet_libraries(environment: Mapping[str, str]) -> None:
    """Let the loggers of :data:`QUIET` tell errors alone, unless ``environment`` says how much the libraries tell."""
    if not set(VERBOSITY) & environment.keys():
        for name in QUIET:
            logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def loading(name: str) -> Iterator[None]:
    """While a pipeline is loaded: one line on a terminal that goes again, in the place of a bar of each of its parts.

    The bars of downloads stay.
    """
    from diffusers.utils import logging as of_diffusers
    from rich.console import Console

    of_diffusers.disable_progress_bar()
    if find_spec("transformers") is not None:
        _quiet_transformers()
    console = Console(stderr=True)
    if console.is_terminal and Path(name).exists():
        with console.status(f"loading {name}"):
            yield
    else:
        yield


def _quiet_transformers() -> None:
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as of_transformers

    downloads = not are_progress_bars_disabled()
    of_transformers.disable_progress_bar()  # the hub's as well
    if downloads:
        enable_progress_bars()
