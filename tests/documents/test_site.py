"""The site is made without a warning: every page, every link, every public name with its docstring."""

import os
import subprocess
import sys

import pytest
from markdown_pages import ROOT

import segue


@pytest.mark.slow
def test_the_site_is_made_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    reference = (tmp_path / "site" / "docs" / "reference.html").read_text(encoding="utf-8")
    assert [name for name in segue.__all__ if f'id="segue.{name}"' not in reference] == []
    assert "Classifier-free guidance" in reference and ":class:" not in reference and ":meth:" not in reference
