"""A tuned launch table is used where it belongs, and nowhere else."""

import os
import shutil

import pytest
import torch

from segue.bench.tuned_table import INSTALLED, install, made_for, refusal, restore
from segue.kernels.launch_table import TABLE

HERE = {"architecture": "sm_90", "triton": "3.6.0"}


@pytest.fixture
def table(tmp_path):
    """A copy of the table of this code."""
    return shutil.copy(INSTALLED, tmp_path / "launch_table.py")


def test_the_table_of_this_code_can_be_used(table):
    assert refusal(table, HERE, HERE) is None
    assert [path.name for path in table.parent.iterdir()] == ["launch_table.py"]  # reading it leaves nothing there


@pytest.mark.parametrize("there", [None, {}, HERE | {"triton": "3.9.0"}, HERE | {"architecture": "sm_100"}])
def test_one_for_another_machine_cannot(table, there):
    assert refusal(table, HERE, there).startswith("it was tuned for ")


def test_one_cut_short_cannot(table):
    table.write_text(table.read_text()[:-200])
    assert refusal(table, HERE, HERE).startswith("it cannot be read: SyntaxError")


def test_one_that_lacks_an_entry_of_this_code_cannot(table):
    key = min(TABLE["sm_90"])
    table.write_text(f"{table.read_text()}\ndel TABLE['sm_90'][{key!r}]\n")
    assert refusal(table, HERE, HERE) == f"it lacks 1 entries of this code, among them {key}"


@pytest.fixture
def installed(tmp_path):
    """The table of a tree."""
    path = tmp_path / "elsewhere" / "launch_table.py"
    path.parent.mkdir()
    path.write_text("own")
    os.utime(path, (1000, 1000))
    return path


def test_installing_replaces_the_whole_file_until_it_is_restored(table, installed):
    """With its time of change: two tables of one size and second would share their bytecode."""
    for text in ("tuned", "tuned further"):
        table.write_text(text)
        install(table, installed)
        assert installed.read_text() == text
        assert installed.stat().st_mtime > 1000
    restore(installed)
    assert (installed.read_text(), installed.stat().st_mtime) == ("own", 1000)
    assert list(installed.parent.iterdir()) == [installed]
    restore(installed)
    assert installed.read_text() == "own"


def test_a_table_written_over_the_installed_one_is_not_replaced_by_an_older_one(table, installed):
    install(table, installed)
    installed.write_text("newer")
    restore(installed)
    assert installed.read_text() == "newer"
    assert list(installed.parent.iterdir()) == [installed]


def test_it_is_made_for_an_architecture_and_a_compiler():
    assert set(made_for(torch.device("cpu"))) == {"architecture", "triton"}
