"""The names of ``segue``: found without loading what they need, loaded when they are used."""

import json
import subprocess
import sys

import pytest

CODE = """
import json, sys
import segue
loaded = {"import": [name for name in ("torch", "diffusers") if name in sys.modules]}
loaded["listed"] = "SegmentedGuidance" in dir(segue) and "CFG" in dir(segue)
from segue import *
loaded["star"] = "diffusers" in sys.modules
loaded["starred"] = ["CFG" in globals(), "SegmentedGuidance" in globals()]
print(json.dumps(loaded))
"""


def test_names_load_nothing_before_they_are_used():
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == {"import": [], "listed": True, "star": False, "starred": [True, False]}


def test_the_guider_for_modular_diffusers_is_public():
    guiders = pytest.importorskip("diffusers.guiders.guider_utils")
    import segue
    from segue.engine.adapters import modular

    assert segue.SegmentedGuidance is modular.SegmentedGuidance
    assert issubclass(segue.SegmentedGuidance, guiders.BaseGuidance)
    with pytest.raises(AttributeError, match="has no attribute 'SegmentGuidance'"):
        segue.SegmentGuidance  # noqa: B018
