"""Wheels that are brought along become importable without a network."""

import subprocess
import sys
import zipfile

import pytest

from segue.bench.wheels import found_wheels, unpack


@pytest.fixture
def wheel(tmp_path):
    """A wheel of one module, whose metadata asks for a package that is not there."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    path = folder / "brought-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("brought.py", "VALUE = 7\n")
        info = "Metadata-Version: 2.1\nName: brought\nVersion: 1.0\nRequires-Dist: there-is-no-such-package\n"
        file.writestr("brought-1.0.dist-info/METADATA", info)
        file.writestr("brought-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("brought-1.0.dist-info/RECORD", "")
    return path


def test_a_wheel_is_importable_and_has_its_version(wheel, tmp_path):
    target = tmp_path / "packages"
    unpack(found_wheels(wheel.parent), target)
    program = "import brought, importlib.metadata as m; print(brought.VALUE, m.version('brought'))"
    done = subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": str(target)}, capture_output=True, text=True)
    assert done.stdout == "7 1.0\n", done.stderr


def test_what_pip_refuses_is_an_error_with_its_reason(wheel, tmp_path):
    wheel.write_bytes(b"no archive")
    with pytest.raises(RuntimeError, match="brought"):
        unpack([wheel], tmp_path / "packages")


def test_a_folder_without_wheels_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there are no wheels in"):
        found_wheels(tmp_path)
