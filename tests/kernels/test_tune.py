"""The tuner from its command to the file it leaves, with the device, the compilers and the clock replaced."""

import ast
import copy
import importlib.util
import itertools
import types

import pytest
import torch

from segue.bench.suites import UNFINISHED
from segue.kernels import agenda, candidates, compilers, launch_table, measured, table_file, trial, tune
from segue.kernels.agenda import Choice
from segue.kernels.catalogue import SIZES, Factory, cases
from segue.kernels.choice import CLASSIFIERS
from segue.kernels.dispatch import MORE_BACKENDS, WITHOUT_TRITON
from segue.kernels.launch import AttentionLaunch, FlatLaunch
from segue.kernels.launch_lookup import launch_config
from segue.kernels.shares import weight

SERVED = "sm_90"
COMMITTED = {name: copy.deepcopy(getattr(launch_table, name)) for name in ("TABLE", "PREFERRED", "MEASURED")}
ATTENTION, PHILOX = ("attention", "k64 t4096"), ("philox", "any")


class PretendDevice(tune.Device):
    """An H100 whose numbers are always right; it is lost where a test says so."""

    name = "pretended card"
    lost = False

    def check(self) -> None:
        if self.lost:
            raise tune.DeviceLostError("CUDA error: an illegal memory access was encountered")


@pytest.fixture
def card(monkeypatch, tmp_path):
    """Hooks of a pretended card: ``seconds`` and ``misfits`` decide; ``path`` is where the table is written."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tune.Device, "current", classmethod(lambda cls: PretendDevice(torch.device("cpu"), SERVED)))
    monkeypatch.setattr(tune, "_with_backend", lambda operation, name, device: Named(operation, name))
    monkeypatch.setattr(trial.Trial, "agrees", lambda self, function: True)
    for name in ("TABLE", "PREFERRED", "MEASURED"):
        table = getattr(launch_table, name)
        monkeypatch.setitem(table, SERVED, dict(table.get(SERVED, {})))
        assert getattr(tune, name) is table
    monkeypatch.setitem(launch_table.PROVENANCE, SERVED, "untouched")
    pretended = Card(tmp_path / "launch_table.py")
    monkeypatch.setattr(trial.Trial, "seconds", lambda self, function: pretended.seconds(self.case, function))
    monkeypatch.setattr(compilers, "misfit", lambda job, spills=False: pretended.misfit(job))
    return pretended


class Named:
    """The kernels of a selection: whatever is asked for is the name of its backend."""

    def __init__(self, operation: str, name: str):
        setattr(self, operation, name)


class Card:
    def __init__(self, path):
        self.path = path
        self.timed: list[tuple[str, str]] = []

    def seconds(self, case, function) -> float:
        """The last candidate is the fastest; of the backends the one whose name comes first."""
        key = next((key for key in tune.users(SERVED) if case in tune.users(SERVED)[key]), None)
        if isinstance(function, str):
            return 1e-3 + 1e-6 * ord(function[0])
        configs = candidates.candidates(key)
        return 1e-3 / (1 + configs.index(launch_config(*key, SERVED)))

    def misfit(self, job) -> str | None:
        return None

    def run(self, *arguments: str) -> int:
        return tune.main(["--jobs", "0", "--out", str(self.path), *arguments])

    def written(self):
        """The file, imported as the module it is to replace."""
        specification = importlib.util.spec_from_file_location("segue.kernels.launch_table_written", self.path)
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        return module


def test_the_whole_tuner(card, capsys):
    """Every entry and every choice, to the end; the file imports and holds the tables."""
    assert card.run() == 0
    said = capsys.readouterr().out
    items = agenda.agenda(SERVED, set())
    assert f"{len(items)} of {len(items)} tuned, 0 of them before; written to {card.path}" in said
    assert [*card.path.parent.iterdir()] == [card.path]  # no half-written file is left
    written = card.written()
    for name in ("TABLE", "PREFERRED", "PROVENANCE", "MEASURED"):
        assert getattr(launch_table, name) == getattr(written, name)
    assert len(written.MEASURED[SERVED]) == len(items)
    for key, config in written.TABLE[SERVED].items():
        assert config == candidates.candidates(key)[-1], key
    assert written.PREFERRED[SERVED]["linear_gelu", "m8192 in2048 out8192"] == "cublaslt"
    assert written.PREFERRED[SERVED]["fp8_linear", "m512 in2048 out8192"] == "reference"
    assert len(written.PREFERRED[SERVED]) == sum(isinstance(item, Choice) for item in items)
    assert written.PROVENANCE[SERVED].startswith(f"timed on pretended card, {len(items)} of {len(items)} entries")


class OutOfResources(Exception):
    """Triton's error of the same name is an Exception and no RuntimeError."""


@pytest.mark.parametrize("error", [OutOfResources("Required: 264192\nHardware limit: 232448"), RuntimeError("ptxas failed")])
def test_a_candidate_that_raises_costs_itself(card, capsys, monkeypatch, error):
    """Be it compiled ahead of time or launched; with one line for each."""
    broken, refused = candidates.candidates(ATTENTION)[-1], candidates.candidates(ATTENTION)[-2]
    plain = card.seconds

    def seconds(case, function):
        if not isinstance(function, str) and case.operation == "attention" and launch_config(*ATTENTION, SERVED) == broken:
            raise error
        return plain(case, function)

    card.seconds = seconds
    card.misfit = lambda job: "CompilationError: no" if job[:2] == (ATTENTION, refused) else None
    assert card.run("--only", "attention") == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if f"{ATTENTION}: {broken} left out, " in line]
    assert type(error).__name__ in line and " ".join(str(error).split()) in line
    assert f"{ATTENTION}: {refused} left out, CompilationError: no" in lines
    assert card.written().TABLE[SERVED][ATTENTION] == candidates.candidates(ATTENTION)[-3]
    assert card.written().TABLE[SERVED]["attention", "k64 t2048"] == candidates.candidates(ATTENTION)[-1]


def test_an_entry_without_a_working_candidate_stays_and_the_others_go_on(card, capsys):
    before = launch_table.TABLE[SERVED][PHILOX]
    card.misfit = lambda job: "32 bytes of stack" if job[0] == PHILOX else None
    assert card.run("--only", "philox,solver") == 0
    assert "('philox', 'any'): NOT TUNED, no candidate works; what there was stays" in capsys.readouterr().out
    assert card.written().TABLE[SERVED][PHILOX] == before
    assert card.written().TABLE[SERVED]["solver", "any"] == candidates.candidates(("solver", "any"))[-1]


def test_wrong_numbers_are_not_fast(card, capsys, monkeypatch):
    wrong = candidates.candidates(PHILOX)[-1]
    monkeypatch.setattr(trial.Trial, "agrees", lambda self, function: launch_config(*PHILOX, SERVED) != wrong)
    assert card.run("--only", "philox") == 0
    assert f"{wrong} left out, ArithmeticError: wrong numbers for normal_noise, " in capsys.readouterr().out
    assert card.written().TABLE[SERVED][PHILOX] == candidates.candidates(PHILOX)[-2]


def test_an_approximate_backend_is_never_the_automatic_choice(card):
    """However fast it is, the sums of 14 bits are for those who ask for them; nothing exact is left out for it."""
    timed = []

    def seconds(case, function):
        timed.append(function)
        return 1e-9 if function == "scaled_mm_fast" else 1e-3 if function == "scaled_mm" else 1.0

    card.seconds = seconds
    assert card.run("--only", "fp8_linear") == 0
    found = card.written().PREFERRED[SERVED]
    assert {name for (operation, _), name in found.items() if operation == "fp8_linear"} == {"scaled_mm"}
    assert set(timed) == {"reference", "scaled_mm"}


@pytest.mark.parametrize("operation", CLASSIFIERS)
def test_every_exact_backend_competes(operation):
    own = {"reference"} if operation in WITHOUT_TRITON else {"reference", "triton"}
    known = own | set(MORE_BACKENDS.get(operation, ()))
    assert set(agenda.eligible_backends(operation)) == known - {"scaled_mm_fast", "bounded"}


def test_after_the_limit_nothing_is_begun_and_what_was_done_is_kept(card, capsys, monkeypatch):
    """A second passes at every look at the clock: with 4 s the first entries are tuned, the most valuable ones."""
    items = agenda.agenda(SERVED, set())
    before = dict(launch_table.TABLE[SERVED])
    monkeypatch.setattr(tune.time, "monotonic", itertools.count().__next__)
    assert card.run("--limit-seconds", "4") == tune.UNFINISHED == UNFINISHED
    done = [item for item in items[:3] if not isinstance(item, Choice)]
    assert f"the limit of 4 s is reached: {len(items) - 3} of {len(items)} not begun" in capsys.readouterr().out
    table = card.written().TABLE[SERVED]
    assert {key for key in table if table[key] != before[key]} == set(done)
    assert card.written().PROVENANCE[SERVED].startswith(f"timed on pretended card, 3 of {len(items)} entries")


def forget(monkeypatch):
    """As a process that has just begun: the tables in memory are the committed ones."""
    for name in ("TABLE", "PREFERRED", "MEASURED"):
        table = getattr(launch_table, name)
        monkeypatch.setitem(table, SERVED, dict(COMMITTED[name].get(SERVED, {})))


def test_a_second_call_goes_on_where_the_first_ended(card, capsys, monkeypatch):
    """Two calls with a limit, and a third to the end, time every item once and leave the table of a single call."""
    begun, plain = [], tune._tuned
    monkeypatch.setattr(tune, "_tuned", lambda item, *rest: begun.append(item) or plain(item, *rest))
    with monkeypatch.context() as clock:
        clock.setattr(tune.time, "monotonic", itertools.count().__next__)
        assert card.run("--limit-seconds", "9") == UNFINISHED
        forget(monkeypatch)
        assert card.run("--limit-seconds", "9") == UNFINISHED
    forget(monkeypatch)
    assert card.run() == 0
    items = agenda.agenda(SERVED, set())
    assert sorted(map(str, begun)) == sorted(map(str, items)) and begun[:16] == items[:16]
    assert f"{len(items)} of {len(items)} tuned, 16 of them before" in capsys.readouterr().out
    found = card.written()
    card.path.unlink()
    forget(monkeypatch)
    assert card.run() == 0
    assert (found.TABLE, found.PREFERRED, found.MEASURED) == (
        card.written().TABLE, card.written().PREFERRED, card.written().MEASURED,
    )  # fmt: skip
    assert found.PROVENANCE[SERVED].startswith(f"timed on pretended card, {len(items)} of {len(items)} entries")


@pytest.mark.parametrize("changed", ["nothing", "card", "triton", "kernel", "candidates"])
def test_what_was_timed_under_other_conditions_is_timed_again(card, monkeypatch, changed):
    assert card.run("--only", "solver") == 0
    forget(monkeypatch)
    if changed == "card":
        monkeypatch.setattr(PretendDevice, "name", "another card")
    elif changed == "triton":
        monkeypatch.setattr(measured, "triton", types.SimpleNamespace(__version__="0"))
    elif changed == "kernel":
        monkeypatch.setattr(measured, "source_digests", lambda launches: {"solver_kernel": "other"})
    elif changed == "candidates":
        monkeypatch.setattr(measured, "candidates", lambda key: candidates.candidates(key)[1:])
    begun, plain = [], tune.tune_entry
    monkeypatch.setattr(tune, "tune_entry", lambda key, *rest: begun.append(key) or plain(key, *rest))
    assert card.run("--only", "solver") == 0
    assert begun == ([] if changed == "nothing" else [("solver", "any")])
    assert card.written().TABLE[SERVED]["solver", "any"] == candidates.candidates(("solver", "any"))[-1]


def test_what_the_module_records_is_written_without_timing(card, monkeypatch):
    """To another file than the one that the module came from."""
    assert card.run("--only", "solver") == 0
    found = card.written()
    card.path.unlink()
    monkeypatch.setattr(tune, "tune_entry", lambda *_: pytest.fail("timed again"))
    assert card.run("--only", "solver") == 0
    assert (card.written().TABLE, card.written().MEASURED) == (found.TABLE, found.MEASURED)


def test_an_item_without_an_outcome_is_not_recorded(card):
    card.misfit = lambda job: "32 bytes of stack" if job[0] == PHILOX else None
    assert card.run("--only", "philox,solver") == 0
    assert set(card.written().MEASURED[SERVED]) == {("entry", "solver", "any")}


def test_a_file_that_is_no_table_is_refused(card, capsys):
    card.path.write_text("import nothing_of_the_kind\n")
    with pytest.raises(SystemExit):
        card.run()
    assert f"{card.path} is no launch table: ModuleNotFoundError" in capsys.readouterr().err


def test_a_tuner_that_is_killed_leaves_what_it_had(card, monkeypatch):
    """The file is whole after every entry."""
    plain, begun = tune.tune_entry, []

    def killed(key, device, compiled):
        begun.append(key)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return plain(key, device, compiled)

    monkeypatch.setattr(tune, "tune_entry", killed)
    with pytest.raises(KeyboardInterrupt):
        card.run("--only", "heads")
    assert card.written().TABLE == launch_table.TABLE
    assert card.written().TABLE[SERVED][begun[1]] == candidates.candidates(begun[1])[-1]


def test_a_lost_device_ends_the_run_and_says_so(card, capsys, monkeypatch):
    def seconds(case, function):
        monkeypatch.setattr(PretendDevice, "lost", True)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    card.seconds = seconds
    assert card.run("--only", "solver,philox") == 1
    assert "the device is lost" in capsys.readouterr().out


def test_a_table_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "launch_table.py"
    path.write_text("old")
    monkeypatch.setattr(table_file.Path, "replace", lambda self, other: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        table_file.write_table(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("arguments", [["--limit-seconds", "0"], ["--limit-seconds", "nan"], ["--jobs", "-1"]])
def test_a_wrong_option_is_refused_before_any_work(card, arguments, capsys):
    with pytest.raises(SystemExit):
        tune.main(arguments)
    assert "limit-seconds must be positive and jobs not negative" in capsys.readouterr().err
    assert not card.path.exists()


# --- untimed -----------------------------------------------------------------------------------------------------------


def test_untimed_takes_the_first_candidate_that_fits_and_keeps_an_entry_that_none_fits(monkeypatch, capsys, tmp_path):
    """For every architecture; what was chosen before is not asked for again by another name."""
    monkeypatch.setattr(tune, "ARCHITECTURES", (SERVED,))
    monkeypatch.setitem(launch_table.TABLE, SERVED, dict(launch_table.TABLE[SERVED]) | {("solver", "gone"): FlatLaunch(512, 4)})
    monkeypatch.setitem(launch_table.PROVENANCE, SERVED, "timed on a card")
    monkeypatch.setitem(launch_table.PREFERRED, SERVED, {("attention", "k64 t4096"): "triton"})
    monkeypatch.setitem(launch_table.MEASURED, SERVED, {("entry", *PHILOX): "0123456789abcdef"})
    new = ("heads", "k64 m512")
    del launch_table.TABLE[SERVED][new]
    stood_in = launch_config(*new, SERVED)
    before = launch_table.TABLE[SERVED][PHILOX]
    taken = AttentionLaunch(128, 64, 8, 3)
    asked = []

    def misfit(job, spills):
        asked.append(job)
        key, config, _ = job
        return "no" if key in (PHILOX, new) or (key[0] == "attention" and config != taken and key[1] != "fp32") else None

    monkeypatch.setattr(tune, "misfit", misfit)
    tune.first_fitting.cache_clear()
    assert tune.main(["--untimed", "--jobs", "0", "--out", str(tmp_path / "table.py")]) == 0
    table = launch_table.TABLE[SERVED]
    assert table[ATTENTION] == taken and table[PHILOX] == before and table[new] == stood_in
    assert ("solver", "gone") not in table
    assert "('philox', 'any'): NOT CHOSEN" in capsys.readouterr().out
    assert launch_table.PROVENANCE[SERVED].startswith("first candidate that compiles") and SERVED not in launch_table.PREFERRED
    assert SERVED not in launch_table.MEASURED
    assert len(asked) == len(set(asked))
    assert (tmp_path / "table.py").read_text() == table_file.table_source()
    tune.first_fitting.cache_clear()


def test_what_compilation_chose_is_not_recorded_as_timed(monkeypatch, tmp_path):
    """Of the operations that were asked for; the record of others stays."""
    monkeypatch.setattr(tune, "ARCHITECTURES", (SERVED,))
    monkeypatch.setitem(launch_table.TABLE, SERVED, dict(launch_table.TABLE[SERVED]))
    monkeypatch.setitem(launch_table.MEASURED, SERVED, {("entry", *PHILOX): "0" * 16, ("entry", *ATTENTION): "1" * 16})
    monkeypatch.setattr(tune, "misfit", lambda job, spills: None)
    tune.first_fitting.cache_clear()
    assert tune.main(["--untimed", "--only", "philox", "--jobs", "0", "--out", str(tmp_path / "table.py")]) == 0
    assert launch_table.MEASURED[SERVED] == {("entry", *ATTENTION): "1" * 16}
    tune.first_fitting.cache_clear()


# --- what is compiled, and in which order ------------------------------------------------------------------------------


def test_equal_shapes_are_timed_once_and_count_for_all(card):
    alike = [case for case in tune.users(SERVED)[ATTENTION] if case.operation == "attention" and not case.alternative]
    found = agenda.weighed(alike, 1.0)
    assert [one.case.size.name for one in found] == ["SD3-medium 1024", "SD3.5-large 1024"]
    assert sum(one.share for one in found) == pytest.approx(agenda.value(alike))
    assert found[0].weight == pytest.approx(sum(weight(case) for case in alike if "medium" in case.size.name))
    assert len(agenda.weighed(alike, 0.5)) == 1


@pytest.mark.parametrize("gained, taken", [(0.9, 0), (1.1, 1)])
def test_a_candidate_is_judged_by_what_it_costs_all_models(card, monkeypatch, gained, taken):
    """The second is slower on one case and gains so much of that loss on another: the sum over runs decides."""
    first, second = candidates.candidates(ATTENTION)[:2]
    monkeypatch.setattr(tune, "candidates", lambda key: (first, second))
    monkeypatch.setattr(tune, "TIMED_SHARE", 1.0)
    medium, large, *_ = agenda.weighed(tune.users(SERVED)[ATTENTION], 1.0)

    def seconds(case, function) -> float:
        if isinstance(function, str) or launch_config(*ATTENTION, SERVED) == first:
            return 1.0
        gain = {medium.case: -0.1, large.case: 0.1 * gained * medium.weight / large.weight}
        return 1.0 - next((value for one, value in gain.items() if one.name == case.name), 0.0)

    card.seconds = seconds
    card.run("--only", "attention")
    assert card.written().TABLE[SERVED][ATTENTION] == (first, second)[taken]


# --- one case ----------------------------------------------------------------------------------------------------------


def test_a_case_is_timed_on_arguments_that_no_cache_holds(monkeypatch):
    """Every set is used once in a replay; the time of a replay is that of all its calls."""
    monkeypatch.setattr(trial, "CACHE_BYTES", 2**20)
    used: list[int] = []

    def captured(function, sets):
        held = sum(x.numel() * x.element_size() for arguments in sets for x in arguments if isinstance(x, torch.Tensor))
        assert held >= 2**20
        return lambda: used.extend(arguments[0].data_ptr() for arguments in sets)

    monkeypatch.setattr(trial, "captured", captured)
    times = iter([9.0, 3.0, 6.0, 3.0, 3.0])

    def elapsed(replay):
        replay()
        return next(times)

    monkeypatch.setattr(trial, "elapsed", elapsed)
    case = next(case for case in cases(SIZES[1]) if case.operation == "modulated_norm")
    one = trial.Trial(case, Factory(torch.device("cpu"), torch.bfloat16))
    sets = len(one._sets)
    assert one.seconds(case.reference) == 3.0 / sets
    assert len(set(used)) == sets > 2 and len(used) == sets * (1 + trial.REPLAYS)


def test_the_written_table_is_as_the_formatter_leaves_it():
    text = table_file.table_source()
    assert max(map(len, text.splitlines())) <= table_file.LINE_LENGTH
    ast.parse(text)
