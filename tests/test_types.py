"""What type checkers see of the package: its public names, and the faults in how they are used and made."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import segue
from segue.bench.links import make_links

ROOT = Path(__file__).parents[1]
GOOD = """
import segue
from segue import CFG, SGG, Engine, SkipLayer, Window, parse_rule

engine = Engine.from_pretrained("herbarium", device="cpu")
rule = SGG(CFG(2.5), SkipLayer(0.5, (7, 8)), switch=0.5)
plan: segue.Plan = engine.plan(rule, steps=28)
other = segue.compile_plan(CFG(2, window=Window.fraction(0.0, 0.5)), segue.linear(10), "euler", plan.spec)
calls: int = other.calls
named: segue.Guidance = parse_rule("sgg", plan.spec).guidance
"""
BAD = {
    "from segue import Enigne": "attr-defined",
    "segue.CGF(2.0)": "attr-defined",
    'segue.CFG("strong")': "arg-type",
    "segue.CFG(2.0, windows=None)": "call-arg",
    "segue.from_sigmas(3)": "arg-type",
    "steps: str = segue.linear(3).steps": "assignment",
    "segue.SegmentedGuidance(3)": "arg-type",
}
# a wrong type, a keyword that nobody takes, a name that is nowhere: file of the public API, what it says, what is planted
PLANTED = (
    ("planning/plan.py", "return len(self.sigmas)", "return str(self.sigmas)"),
    ("adapters/diffusers.py", "else Attachment)(pipe, guidance, graphs, further)", "else Attachment)(pipe, guidanec=guidance)"),
    ("adapters/guided_calls.py", "self._choose_engine(call)\n", "self._chose_engine(call)\n"),
    ("prompts/engine.py", "self._check_numerics(numerics, schedule", "self._chek_numerics(numerics, schedule"),
    ("prompts/engine.py", "return PromptRun(result, plan,", "return PromptRun(plan,"),
    ("engine.py", "return SampleRun(latents, plan,", "return SampleRun(plan,"),
)


def test_the_stub_names_what_is_loaded_lazily():
    """Each public name from its home, exported: by ``as``, without which a stub's import is private."""
    stated: dict[str, tuple[str, ...]] = {}
    for node in ast.parse((ROOT / "segue" / "__init__.pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            assert all(alias.asname == alias.name for alias in node.names)
            stated[node.module] = tuple(alias.name for alias in node.names)
    assert stated == segue._MODULES | segue._ON_DIFFUSERS


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """``mypy`` as ``make lint`` calls it, in a folder of links of its own: ``check(arguments) -> exit code, output``."""
    pytest.importorskip("mypy")
    links = tmp_path_factory.mktemp("types") / "links"
    make_links(links)

    def run(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *arguments]
        done = subprocess.run(command, cwd=links, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    run.links = links
    return run


@pytest.mark.slow
def test_the_package_and_a_use_of_its_public_names_pass(check, tmp_path):
    (tmp_path / "use.py").write_text(GOOD)
    for arguments in ((), (str(tmp_path / "use.py"),)):
        code, output = check(*arguments)
        assert code == 0, output


@pytest.mark.slow
def test_every_wrong_use_of_a_public_name_is_found(check, tmp_path):
    file = tmp_path / "use.py"
    file.write_text("import segue\n" + "".join(f"{line}\n" for line in BAD))
    code, output = check(str(file))
    found = [line.rpartition("[")[2].rstrip("]") for line in output.splitlines() if ": error:" in line]
    assert (code, found) == (1, list(BAD.values())), output


@pytest.mark.slow
def test_every_error_planted_in_the_public_api_is_found(check):
    link = check.links / "segue" / "engine"
    link.unlink()
    shutil.copytree(ROOT / "engine", link)
    planted = set()
    for name, right, wrong in PLANTED:
        source = (link / name).read_text()
        assert source.count(right) == 1, (name, right)
        (link / name).write_text(source.replace(right, wrong))
        line = source[: source.index(right)].count("\n") + 1
        planted.add(f"segue/engine/{name}:{line}")
    code, output = check()
    found = {line.partition(": error:")[0] for line in output.splitlines() if ": error:" in line}
    assert code == 1 and planted <= found, output
