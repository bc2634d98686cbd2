"""The package by links: importable from anywhere, as setup.py maps it, without an installation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import find_packages

from segue.bench.links import ROOT, folders, main, make_links

# an editable installation puts a finder before the path: without it only the links can answer
BARE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
"""
FIND = """
import importlib, json
from importlib.metadata import version
names = json.loads(sys.argv[1])
print(json.dumps([version("segue"), {name: importlib.util.find_spec(name).origin for name in names}]))
"""
RUN = """
import runpy
runpy.run_module("segue", run_name="__main__", alter_sys=True)
"""


def bare(program: str, cwd: Path, links: Path, *arguments: str) -> str:
    """What a program prints that was started in ``cwd`` with the exported variables, without an installation."""
    command, environment = [sys.executable, "-c", BARE + program, *arguments], {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(links)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("inside", [True, False])
def test_every_package_of_the_wheel_is_found_in_the_links(tmp_path, inside):
    """Also from inside the checkout, whose folder ``segue`` holds a part of the package."""
    make_links(tmp_path)
    names = ["segue"]
    for folder in folders(ROOT / "setup.py"):
        names += [f"segue.{folder}", *(f"segue.{folder}.{inner}" for inner in find_packages(str(ROOT / folder)))]
    version, origins = json.loads(bare(FIND, ROOT if inside else tmp_path, tmp_path, json.dumps(names)))
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()
    for name, origin in origins.items():
        assert origin.startswith(str(tmp_path)), name
        assert Path(origin).resolve().is_relative_to(ROOT), name


def test_what_type_checkers_read_is_linked_too(tmp_path):
    make_links(tmp_path)
    for name in ("__init__.pyi", "py.typed"):
        assert (tmp_path / "segue" / name).resolve() == ROOT / "segue" / name


def test_the_command_of_a_visit_runs_from_the_links_in_the_checkout(tmp_path):
    """Started as the documentation says: a script, then the module."""
    script, links = str(ROOT / "bench" / "links.py"), tmp_path / "links"
    made = subprocess.run([sys.executable, script, str(links)], capture_output=True, text=True, check=True)
    assert made.stdout == f"export PYTHONSAFEPATH=1 PYTHONPATH={links}\n"
    assert "--wheels" in bare(RUN, ROOT, links, "bench", "gpu", "--help")


def test_links_are_made_again_and_files_are_not_replaced(tmp_path):
    make_links(tmp_path)
    make_links(tmp_path)
    link = tmp_path / "segue" / "bench"
    link.unlink()
    link.write_text("mine")
    with pytest.raises(FileExistsError):
        make_links(tmp_path)
    assert link.read_text() == "mine"


def test_the_folders_are_those_of_setup(tmp_path):
    setup = tmp_path / "setup.py"
    setup.write_text("FOLDERS = ('kernels', 'serving')\n")
    assert folders(setup) == ("kernels", "serving")
    setup.write_text("OTHER = 1\n")
    with pytest.raises(ValueError, match="has no FOLDERS"):
        folders(setup)


def test_a_wrong_call_says_how_it_is_used(capsys):
    assert main([]) == 2
    assert "usage: python3 bench/links.py DIR" in capsys.readouterr().err
