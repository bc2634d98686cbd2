"""The compiled backend against the reference: one operation always, the rest where time allows; what it refuses and counts."""

import gc
import weakref

import pytest
import torch
from live_sets import engine_of, load

from segue import CFG
from segue.kernels import adaln, compiled
from segue.kernels.dispatch import select_kernels
from segue.kernels.record import REFERENCE
from tests.tolerances import ATTACHED_RUN

CPU = torch.device("cpu")
EPS = torch.finfo(torch.float32).eps


@pytest.fixture
def normal(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator)


@pytest.fixture
def compiler():
    if reason := compiled.obstacle(CPU):
        pytest.skip(reason)


def state(normal, vectors, others=1):
    """As a model passes them: the state is a row prefix of a larger buffer, the vectors are chunks of one row."""
    h = normal(4, 5, 24)[:2]
    return [h, *normal(others, 2, 5, 24), *normal(2, vectors * 24)[:, None].chunk(vectors, dim=-1)]


def heads(normal):
    weights = tuple(normal(4, 8).unbind())
    return [normal(2, 5, 72), normal(2, 3, 72), 3, weights[:2], weights[2:]]


def branches(normal):
    return [normal(3, 2, 6, 24), *normal(2, 3, 2, 24), normal(2, 2), (0, 2), normal(16, 24) / 5, normal(16)]


def latents(normal, count):
    return list(normal(count, 2, 4, 4, 6))


OPERANDS = {
    "modulated_norm": lambda normal: state(normal, 2, 0),
    "modulated_norm2": lambda normal: state(normal, 4, 0),
    "gated_residual": lambda normal: state(normal, 1),
    "residual_modulated_norm": lambda normal: state(normal, 3),
    "residual_modulated_norm2": lambda normal: state(normal, 5),
    "residual2_modulated_norm": lambda normal: state(normal, 4, 2),
    "split_heads_norm": lambda normal: [normal(2, 5, 72), 3, *normal(2, 8)],
    "joint_heads_norm": heads,
    "combine_then_project": branches,
    "project": lambda normal: [normal(2, 6, 24), *normal(2, 2, 24), normal(16, 24) / 5, normal(16)],
    "readout_update": lambda normal: [*latents(normal, 2), normal(2, 6), latents(normal, 1)[0], *branches(normal), 2],
    "combine_branches": lambda normal: [normal(3, 2, 6, 16), normal(2, 2), (2, 0), 2, 4, 6],
    "solver_update": lambda normal: [*latents(normal, 4), normal(2, 6)],
    "moments": lambda normal: [(1,), *latents(normal, 4)],
    "linear_combination": lambda normal: [(1, 3), normal(2, 2, 4), *latents(normal, 4)],
}


def copied(operands):
    """The same operands, in the same layout, elsewhere in memory."""
    return [torch.empty_strided(x.shape, x.stride()).copy_(x) if isinstance(x, torch.Tensor) else x for x in operands]


@torch.no_grad()
def check(name, operands):
    """Outputs, and operands that are written in place, equal the reference's to some roundings of the largest."""
    mine, theirs = copied(operands), copied(operands)
    ours, wanted = compiled.compiled(name)(*mine), getattr(REFERENCE, name)(*theirs)
    as_tuple = tuple if isinstance(wanted, tuple) else lambda value: () if value is None else (value,)
    pairs = [*zip(as_tuple(ours), as_tuple(wanted), strict=True)]
    pairs += [pair for pair in zip(mine, theirs, strict=True) if isinstance(pair[0], torch.Tensor)]
    for made, truth in pairs:
        assert made.shape == truth.shape
        assert (made - truth).abs().max() <= 64 * EPS * truth.abs().max()
    for made, truth in zip(as_tuple(ours), as_tuple(wanted), strict=True):
        assert [made is x for x in mine] == [truth is x for x in theirs]


def test_every_operation_has_operands_here():
    assert set(OPERANDS) == set(compiled.FUNCTIONS)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("name", OPERANDS)
def test_every_operation_equals_the_reference(name, normal):
    check(name, OPERANDS[name](normal))


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_run_on_compiled_operations_equals_one_on_the_reference():
    drawn = []
    for kernels in ("compiled", "reference"):
        engine = engine_of("sit", device="cpu", kernels=kernels)
        program = load(engine, engine.plan(CFG(3.0), steps=3), batch=2)
        for live in program.plan.live:
            program.step(live)
        drawn.append(program.x)
    assert (drawn[0] - drawn[1]).abs().max() <= ATTACHED_RUN * drawn[1].abs().max()


def test_each_layout_is_compiled_once_and_any_number_of_them(normal, monkeypatch):
    """More layouts than PyTorch compiles of one function, before it would run the rest uncompiled."""
    compilations = []

    def compile_(function, **options):
        compilations.append((function.__code__, options))
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    made = compiled.Compiled(adaln.gated_residual)
    for tokens in range(1, 21):
        for _ in range(2):
            made(normal(2, tokens, 4), normal(2, tokens, 4), normal(2, 1, 4))
    h, y, gate = normal(2, 4, 3), normal(2, 3, 4), normal(2, 1, 4)
    made(h.transpose(1, 2), y, gate)
    made(y, h.transpose(1, 2), gate=gate)
    codes, options = zip(*compilations, strict=True)
    assert len({id(code) for code in codes}) == len(codes) == 22
    assert all(option == {"fullgraph": True, "dynamic": False} for option in options)


@torch.no_grad()
def test_the_layouts_used_last_are_kept_and_the_graphs_of_others_released(normal, monkeypatch):
    """PyTorch's own compiler as far as the graph, whose lifetime is what counts."""
    compile_, graphs = torch.compile, []

    def backend(graph, _inputs):
        graphs.append(weakref.ref(graph))
        return graph.forward

    def called(tokens):
        made(normal(1, tokens, 4), normal(1, tokens, 4), normal(1, 1, 4))

    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend=backend, **options))
    monkeypatch.setattr(compiled, "LAYOUTS", 3)
    made = compiled.Compiled(adaln.gated_residual)
    for tokens in (1, 2, 3, 1, 4, 1):
        called(tokens)
    gc.collect()
    assert [graph() is not None for graph in graphs] == [True, False, True, True]
    called(2)
    assert len(graphs) == 5


@pytest.fixture
def uncompiled(monkeypatch):
    """The functions themselves in place of what PyTorch compiles of them."""
    compiled.compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", lambda function, **_options: function)
    yield
    compiled.compiled.cache_clear()


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", compiled.FUNCTIONS)
def test_gradients_are_refused_in_one_sentence(name, normal):
    """Whichever operand asks, before anything is written; weights in training serve where nothing is recorded."""
    drawn = OPERANDS[name](normal)
    function = compiled.compiled(name)
    for place in (i for i, x in enumerate(drawn) if isinstance(x, torch.Tensor)):
        operands = copied(drawn)
        operands[place].requires_grad_(True)
        with pytest.raises(ValueError, match=rf"^the compiled {name} has no gradient, and an operand requires one: call it"):
            function(*operands)
        assert all(torch.equal(a, b) for a, b in zip(operands, drawn, strict=True) if isinstance(a, torch.Tensor))
        with torch.no_grad():
            function(*operands)


@pytest.mark.usefixtures("compiler")
def test_products_and_attention_are_left_to_the_automatic_choice():
    asked, automatic = select_kernels(CPU, torch.float32, backend="compiled"), select_kernels(CPU, torch.float32)
    for operation, choice in asked.chosen.items():
        assert choice == (("compiled", "requested") if operation in compiled.FUNCTIONS else automatic.chosen[operation])
    at_once = select_kernels(CPU, torch.float32, backend="compiled", overrides={"linear_gated_residual": "reference"}).kernels
    assert at_once.linear_gated_residual.keywords["residual"] is compiled.compiled("gated_residual")
    assert "kernels compiled (requested): modulated_norm, " in "\n".join(asked.explain())


def test_without_a_compiler_it_is_refused_in_one_sentence(monkeypatch):
    from torch._inductor import cpp_builder, exc

    def missing(*_arguments):
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    compiled._without_compiler.cache_clear()
    try:
        with pytest.raises(ValueError, match="modulated_norm='compiled' cannot work: no C\\+\\+ compiler was found; install"):
            select_kernels(CPU, torch.float32, backend="compiled")
    finally:
        compiled._without_compiler.cache_clear()
