"""The wheel: ``segue/`` only, importable anywhere, without optional libraries, and without side effects."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("kernels", "models", "engine", "training", "bench", "serving")
OPTIONAL = ("triton", "diffusers", "transformers", "xformers", "pynvml", "matplotlib", "torchvision", "ray", "torchmetrics")
SERVING = ("fastapi", "starlette", "uvicorn", "prometheus_client")  # what modules of serving/ import at their top

MISSING = "ModuleNotFoundError"

# runs in a bare interpreter, outside the checkout: argv[1] is the folder with the package, the rest are blocked
PREPARE = """
import json, os, sys, threading, warnings
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
sys.path.insert(0, sys.argv[1])
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[2:]:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)
sys.meta_path.insert(0, Block())
"""

SIDE_EFFECTS = """
import logging, multiprocessing, signal
import torch
def state():
    flags = [torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads(), torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark,
        torch.backends.cudnn.enabled, torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(), torch.backends.cuda.cudnn_sdp_enabled(),
        torch.get_rng_state().tolist(), torch.cuda.is_initialized(), dict(os.environ), os.getcwd(), os.listdir(), sys.path,
        logging.root.handlers, logging.root.level, signal.getsignal(signal.SIGINT), sys.excepthook,
        multiprocessing.get_start_method(allow_none=True), threading.active_count(), os.listdir(os.environ["HOME"])]
    return [repr(flag) for flag in flags]
before = state()
warnings.simplefilter("error")
import segue
for name in segue.__all__:
    getattr(segue, name)
outside = [name for name, module in sys.modules.items()
    if name.split(".")[0] == "segue" and not getattr(module, "__file__", sys.argv[1]).startswith(sys.argv[1])]
print(json.dumps({"changed": [i for i, (a, b) in enumerate(zip(before, state())) if a != b], "outside": outside,
    "loaded": [name for name in sys.argv[2:] if name in sys.modules], "names": len(segue.__all__)}))
"""

IMPORT_ALL = """
import importlib, pkgutil
import segue
names, failed = [], {}
for folder in FOLDERS:
    package = importlib.import_module(f"segue.{folder}")
    names += [info.name for info in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = [type(error).__name__, getattr(error, "name", None) or repr(error)]
print(json.dumps({"count": len(names), "failed": failed}))
""".replace("FOLDERS", repr(FOLDERS))

BARE_NAMES = """
import importlib.util
found = {name: importlib.util.find_spec(name) for name in FOLDERS}
places = {name: [spec.origin, *(spec.submodule_search_locations or ())] for name, spec in found.items() if spec}
print(json.dumps(places))
""".replace("FOLDERS", repr(FOLDERS))


def run(code: str, folder: Path, *arguments: str) -> dict:
    """The JSON that ``code`` prints, run isolated in an empty folder that is also its home."""
    folder.mkdir(exist_ok=True)
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-B", "-c", code, *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and not result.stderr, result.stderr
    assert list(folder.iterdir()) == [], "files were written"
    assert result.stdout.count("\n") == 1, f"something was printed: {result.stdout}"
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel of a copy of the checkout, built offline."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("segue", *FOLDERS):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.part"))
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--wheel-dir", str(out))
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(copy)], check=True, cwd=out)
    return zipfile.ZipFile(next(out.glob("*.whl")))


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    wheel.extractall(folder)
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    inside = {name for name in wheel.namelist() if not name.split("/")[0].endswith(".dist-info")}
    assert {name.split("/")[0] for name in inside} == {"segue"}
    data = {".py": (), ".safetensors": ("models/bundled",), ".md": ("models/bundled",), ".json": ("models/bundled",)}
    data |= dict.fromkeys((".html", ".css", ".js", ".svg"), ("serving/page",))
    expected = {f"segue/{path.name}" for path in (ROOT / "segue").glob("*.py")} | {"segue/__init__.pyi", "segue/py.typed"}
    for suffix, places in data.items():
        for place in places or FOLDERS:
            expected |= {f"segue/{path.relative_to(ROOT)}" for path in (ROOT / place).rglob(f"*{suffix}")}
    assert inside == expected


def test_the_wheel_carries_its_licence_and_its_command(wheel):
    info = next(name.split("/")[0] for name in wheel.namelist() if name.split("/")[0].endswith(".dist-info"))
    assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert "segue = segue.__main__:main" in wheel.read(f"{info}/entry_points.txt").decode()


def test_import_works_without_optional_libraries_and_has_no_side_effects(unpacked, tmp_path):
    found = run(PREPARE + SIDE_EFFECTS, tmp_path / "empty", unpacked, *OPTIONAL)
    assert found["names"] > 10
    assert (found["changed"], found["outside"], found["loaded"]) == ([], [], [])


def test_every_module_imports_without_optional_libraries(unpacked, tmp_path):
    found = run(PREPARE + IMPORT_ALL, tmp_path / "empty", unpacked, *OPTIONAL, *SERVING)
    failed = {name: error for name, error in found["failed"].items() if error not in [[MISSING, name] for name in SERVING]}
    assert found["count"] > 40 and failed == {}
    assert all(name.startswith("segue.serving.") for name in found["failed"])
    assert not {"segue.serving.cli", "segue.serving.serve_options", "segue.serving.settings"} & set(found["failed"])


def test_the_folders_bare_names_stay_free(unpacked, tmp_path):
    """``kernels`` is a package that other libraries import: neither a wheel nor the checkout may answer to the name."""
    editable = "import json"
    for code in (PREPARE + BARE_NAMES, editable + BARE_NAMES):
        for places in run(code, tmp_path / "empty", unpacked).values():
            assert not [place for place in places if place and place.startswith((str(unpacked), str(ROOT)))]
