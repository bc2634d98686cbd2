"""The code blocks of a document run as written: commands through the command line, Python by ``exec``, in one folder a page.

``segue serve`` runs until the page ends, and ``curl`` asks it.

Weights that nobody can bring into a test are played by tiny random networks of the same layout under the names that the
documents use: folders, checkpoints, and one repository of a stand-in hub.
"""

import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from document_server import DocumentServer
from hub_stand_in import StandInHub
from markdown_pages import ROOT, Block
from official_dit import random_state
from PIL import Image
from tiny_dit import dit_vae, tiny_dit_pipeline
from tiny_sd3 import tiny_pipeline
from typer.testing import CliRunner

from segue.__main__ import app

SD3_HUB = "stabilityai/stable-diffusion-3.5-medium"
FOLDERS = {"sd3": "sd3.5-medium", "dit": "DiT-XL-2-256", "sit": "SiT-XL-2-256x256.pt", "vae": "sd-vae-ft-ema"}
PICTURE = "cat.png"
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def tiny_sd3():
    return tiny_pipeline("sd3.5-medium", num_layers=12)


def tiny_dit():
    return tiny_dit_pipeline(classes=1000, layers=12)


def write_stand_ins(folder: Path) -> None:
    """Tiny networks under the names of ``FOLDERS``; the SiT has the width of SiT-S, which tells its heads."""
    tiny_sd3().save_pretrained(folder / FOLDERS["sd3"])
    tiny_dit().save_pretrained(folder / FOLDERS["dit"])
    torch.save(random_state(4, depth=2, dim=384, classes=1000, hidden=64), folder / FOLDERS["sit"])
    dit_vae(8).save_pretrained(folder / FOLDERS["vae"])
    Image.new("RGB", (16, 16), "green").save(folder / PICTURE)


class Page:
    """Runs the blocks of one page in ``folder``, which holds links to the stand-ins and to what the repository has."""

    def __init__(self, folder: Path, stand_ins: Path, monkeypatch):
        self.folder, self.monkeypatch = folder, monkeypatch
        self.server = DocumentServer(monkeypatch)
        self.names: dict[str, Any] = {"__name__": "page"}
        for source in (*stand_ins.iterdir(), ROOT / "bench", ROOT / "examples"):
            (folder / source.name).symlink_to(source)
        monkeypatch.chdir(folder)
        StandInHub(stand_ins / FOLDERS["sd3"], folder / "cache", SD3_HUB).install(monkeypatch)
        monkeypatch.setattr("diffusers.StableDiffusion3Pipeline.from_pretrained", of_hub("StableDiffusion3", tiny_sd3))
        monkeypatch.setattr("diffusers.DiTPipeline.from_pretrained", of_hub("DiT", tiny_dit))

    def run(self, block: Block) -> None:
        """Run one block; ``AssertionError`` with the command for one that fails, or that does not as its mark says."""
        if block.language == "python":
            self._exec(block)
        else:
            for command in commands(block.text):
                self._command(command, block)

    def _exec(self, block: Block) -> None:
        try:
            exec(compile(block.text, f"line {block.line}", "exec"), self.names)
        except Exception as error:
            if block.mark != "raises":
                raise
            assert block.words in str(error)
        else:
            assert block.mark != "raises", f"line {block.line} raises nothing"

    def _command(self, command: str, block: Block) -> None:
        words = shlex.split(command, comments=True)
        with self.monkeypatch.context() as patch:
            while words and (setting := re.fullmatch(r"([A-Z_]+)=(.*)", words[0])):
                patch.setenv(setting[1], setting[2])
                words.pop(0)
            *words, file = words if ">" in words[-2:-1] else (*words, "")
            program, *arguments = words[: words.index(">")] if file else words
            program = program.removeprefix(".venv/bin/")
            if program == "make":
                assert arguments[0] in TARGETS, command
                if arguments[0] == "serve":
                    self.server.serve([])
            elif (program, *arguments[:1]) == ("segue", "serve") and block.mark != "raises":
                self.server.serve(arguments[1:])
            elif program == "curl":
                printed = self.server.curl(arguments, command)
                if file:
                    Path(file).write_text(printed, encoding="utf-8")
            elif program == "python":
                patch.syspath_prepend(ROOT / "examples")
                runpy.run_path(*arguments, run_name="__main__")
            else:
                self._segue(program, arguments, command, block, file)

    def _segue(self, program: str, arguments: list[str], command: str, block: Block, file: str) -> None:
        assert program == "segue", f"{command}: nothing here runs {program}; mark the block: <!-- not run: REASON -->"
        result = CliRunner().invoke(app, arguments)
        refused = block.mark == "raises"
        assert result.exit_code == (2 if refused else 0), f"{command}: {result.stderr or result.exception}"
        if refused:
            assert block.words in result.stderr, result.stderr
        if file:
            Path(file).write_text(result.stdout, encoding="utf-8")


def of_hub(name: str, make: Callable) -> Callable:
    """``from_pretrained`` of a pipeline class: a folder is read, and a hub id gives a tiny pipeline that stays where it is."""
    read = getattr(diffusers, f"{name}Pipeline").from_pretrained

    def from_pretrained(source, **options):
        if Path(source).is_dir():
            return read(source, **options)
        pipe = make()
        pipe.to = lambda *_, **__: pipe
        return pipe

    return from_pretrained


def commands(text: str) -> list[str]:
    """The commands of a block, continued lines joined, empty lines and comments left out."""
    lines = text.replace("\\\n", " ").split("\n")
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
