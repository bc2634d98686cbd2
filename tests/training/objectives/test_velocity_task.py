"""Losses and gradients of every objective against its formula, which the oracle evaluates sample by sample, in fp64."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from naive_objectives import NaiveObjective
from step_trace import Trace
from tiny_models import randomize, tiny_sit

from segue.models.sit import SiT
from segue.training.objectives.label_dropout import LabelDropout
from segue.training.objectives.objective import Objective
from segue.training.objectives.velocity_task import VelocityTask, companion_spec

# fp64 sums of some thousand terms in another order; the embedding of a time is computed in fp32 by both
SAME = 1e-11
SIGNALS = {
    "none": Objective(),
    "uncond": Objective("uncond", 0.5),
    "layer-skip": Objective("layer-skip", 0.3, layers=(1,)),
    "layers-skip": Objective("layer-skip", 0.3, layers=(0, 2)),
    "branch": Objective("branch", 0.3, layer=1),
    "separate": Objective("separate", 0.3),
    "segmented": Objective("segmented", 0.6, layer=1, tau=0.45),
}
CONVENTIONS = {
    "repa": {},
    "sit": {"prediction": "data_velocity", "time": "data_time", "out_channels": 4, "parents": ()},
    "cosine": {"path": "cosine"},
    "cosine-sit": {"path": "cosine", "prediction": "data_velocity", "time": "data_time", "exits": (1, 2)},
    "dit": {"prediction": "epsilon", "time": "discrete"},
}
TINY = {"channels": 2, "height": 2, "width": 6, "dim": 16, "depth": 3, "exits": (1,)}


def network(seed: int, **changes) -> SiT:
    return tiny_sit(seed, **(TINY | changes)).double().requires_grad_(True)


def task_for(model: SiT, objective: Objective, **options) -> VelocityTask:
    return VelocityTask(model.spec, LabelDropout(0.3, 0.3 if model.spec.parents else 0.0), 0.2, objective, **options)


def companion_of(task: VelocityTask, seed: int) -> SiT | None:
    companion = task.companion()
    return None if companion is None else randomize(companion.double(), seed).requires_grad_(True)


def batch(task: VelocityTask, count: int, seed: int, progress: float = 1.0):
    """A draw in fp64 with labels of every kind, and its times as the oracle takes them."""
    spec, generator = task.spec, torch.Generator().manual_seed(seed)
    shape = (count, spec.channels, spec.height, spec.width)
    x0, eps = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(0, spec.null_label + 1, (count,), generator=generator)
    labels[0], labels[-1] = spec.null_label, 0
    if spec.time == "discrete":
        index = torch.randint(0, 1000, (count,), generator=generator)
        times, drawn = index.tolist(), task.noising.at_indices(index, torch.float64)
    else:
        time = torch.rand(count, generator=generator, dtype=torch.float64)
        times, drawn = time.tolist(), task.noising.at_times(time)
    return task.draw_at(x0, labels, drawn, eps, progress), times


def gradients(loss: torch.Tensor, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found, strict=True)}


def assert_follows_its_formula(task: VelocityTask, model: SiT, count: int, seed: int, progress: float) -> None:
    companion = companion_of(task, seed + 1)
    drawn, times = batch(task, count, seed, progress)
    losses = task.losses(model, drawn, companion)
    naive = NaiveObjective(task.objective, task.exit_weight, model, companion)
    expected = naive.loss(drawn.x0, drawn.labels, times, drawn.eps, progress)
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=SAME)
    ours, theirs = gradients(losses["loss"], model), gradients(expected, model)
    largest = max(float(g.abs().max()) for g in theirs.values())
    for name, gradient in theirs.items():
        assert float((ours[name] - gradient).abs().max()) <= SAME * largest, name
    if companion is not None:
        assert all(parameter.grad is None for parameter in companion.parameters())


@pytest.mark.parametrize("padded", (False, True))
@pytest.mark.parametrize("signal", SIGNALS)
def test_gradients_are_those_of_the_formula(signal, padded, seed):
    model = network(seed)
    assert_follows_its_formula(task_for(model, SIGNALS[signal], padded=padded), model, 7, seed, 1.0)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("signal", ("none", "layer-skip", "segmented"))
def test_gradients_in_every_convention(signal, convention, seed):
    model = network(seed, **CONVENTIONS[convention])
    assert_follows_its_formula(task_for(model, SIGNALS[signal]), model, 5, seed, 1.0)


@pytest.mark.parametrize("changes", ({"power": 2.0}, {"high": 0.6}, {"target": "inverse"}, {"mode": "released"}))
@pytest.mark.parametrize("signal", ("uncond", "separate", "segmented"))
def test_gradients_of_the_options(signal, changes, seed):
    model = network(seed, exits=(1, 2))
    assert_follows_its_formula(task_for(model, replace(SIGNALS[signal], **changes)), model, 6, seed, 0.7)


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_batch_of_one(signal, seed):
    model = network(seed)
    assert_follows_its_formula(task_for(model, SIGNALS[signal], padded=True), model, 1, seed, 1.0)


# --- what no gradient reaches ------------------------------------------------------------------------------------------


def test_the_null_label_learns_from_the_samples_that_have_it_alone(seed):
    model = network(seed)
    task = task_for(model, SIGNALS["uncond"])
    drawn, _ = batch(task, 6, seed)
    drawn = task.draw_at(drawn.x0, drawn.labels.clamp(max=5), task.noising.at_times(torch.rand(6)), drawn.eps)
    assert len(drawn.rows) == 6
    gradient = gradients(task.losses(model, drawn)["loss"], model)["embedders.0.y_embedder.class_table.weight"]
    assert gradient[-1].eq(0).all()
    assert gradient[:-1].any()


@pytest.mark.parametrize("signal", ("branch", "segmented"))
def test_a_head_learns_nothing_of_the_extrapolation(signal, seed):
    model = network(seed)
    task = replace(task_for(model, SIGNALS[signal]), exit_weight=0.0)
    found = gradients(task.losses(model, batch(task, 7, seed)[0])["loss"], model)
    assert all(gradient.eq(0).all() for name, gradient in found.items() if name.startswith("exit_layers."))


@pytest.mark.parametrize("signal", ("uncond", "layer-skip", "separate", "segmented"))
def test_weak_forwards_record_nothing(signal, seed):
    model = network(seed)
    task = task_for(model, SIGNALS[signal])
    companion, grown = companion_of(task, seed), []
    for block in (*model.blocks, *(companion.blocks if companion else ())):
        block.register_forward_hook(lambda _, inputs, output: grown.append(output.requires_grad))
    drawn, _ = batch(task, 7, seed)
    task.losses(model, drawn, companion)
    assert grown[: model.spec.depth] == [True] * model.spec.depth
    assert len(grown) > model.spec.depth
    assert not any(grown[model.spec.depth :])


# --- modes -------------------------------------------------------------------------------------------------------------


def test_released_and_paper_differ_below_the_switch_alone(seed):
    model = network(seed)
    for tau, differ in ((0.0, False), (0.45, True)):
        losses = []
        for mode in ("paper", "released"):
            task = task_for(model, replace(SIGNALS["segmented"], tau=tau, mode=mode))
            losses.append(task.losses(model, batch(task, 9, seed)[0]))
        assert (losses[0]["loss"].item() != losses[1]["loss"].item()) is differ
        assert losses[0]["velocity"].item() == losses[1]["velocity"].item()
    for signal in ("uncond", "branch", "layer-skip"):
        both = [task_for(model, replace(SIGNALS[signal], mode=mode)) for mode in ("paper", "released")]
        paper, released = (task.losses(model, batch(task, 9, seed)[0])["loss"].item() for task in both)
        assert paper == released


def test_in_released_mode_the_head_follows_the_output_below_the_switch(seed):
    """With all samples below it, the target moves the head only through the output that it agrees with."""
    model = network(seed)
    task = task_for(model, replace(SIGNALS["segmented"], tau=1.0, mode="released"))
    losses = task.losses(model, batch(task, 5, seed)[0])
    assert losses["exit1"] == 0
    assert losses["agreement"] > 0


def test_the_inverse_target_has_the_same_error_and_a_gradient_divided_by_the_scale(seed):
    model = network(seed)
    found = []
    for target in ("extrapolated", "inverse"):
        task = replace(task_for(model, replace(SIGNALS["separate"], weight=0.6, target=target)), exit_weight=0.0)
        losses = task.losses(model, batch(task, 5, seed)[0], companion_of(task, seed))
        found.append((losses["loss"].item(), gradients(losses["loss"], model)))
    (ours, plain), (theirs, inverse) = found
    assert ours == pytest.approx(theirs, rel=SAME)
    scale = Objective("separate", 0.6).effective_scale
    assert scale == pytest.approx(2.5)
    assert all(torch.allclose(inverse[name] * scale, plain[name], rtol=0, atol=SAME) for name in plain)


# --- work --------------------------------------------------------------------------------------------------------------


class BlockRows:
    """Counts the rows that the blocks of a network compute."""

    def __init__(self, model: SiT):
        self.count = 0
        for block in model.blocks:
            block.register_forward_pre_hook(self._add)

    def _add(self, _, arguments) -> None:
        self.count += arguments[0].shape[0]


@pytest.mark.parametrize("padded", (False, True))
@pytest.mark.parametrize("signal", SIGNALS)
def test_only_samples_that_need_a_weak_forward_pay_for_it(signal, padded, seed):
    model = network(seed, depth=5, exits=(1,))
    objective = replace(SIGNALS[signal], high=0.8)
    task, count = task_for(model, objective, padded=padded), 37
    drawn, times = batch(task, count, seed)
    level, null = torch.tensor(times), drawn.labels == model.spec.null_label
    needed = {
        "none": torch.zeros_like(null),
        "uncond": ~null,
        "branch": torch.zeros_like(null),
        "segmented": ~null & (level >= objective.tau),
    }.get(signal, torch.ones_like(null)) & (level <= 0.8)
    blocks = {"uncond": 5, "segmented": 5, "layer-skip": 3, "layers-skip": 3}.get(signal, 0)
    if signal == "layers-skip":  # block 1 and all after 2; nothing lies before the first
        assert task.signal.blocks(model.spec) == 3
    assert set(drawn.rows.tolist()) == set(needed.nonzero()[:, 0].tolist())
    assert len(drawn.rows) == (-(-int(needed.sum()) // 3) * 3 if padded else int(needed.sum()))
    rows, companion = BlockRows(model), companion_of(task, seed)
    beside = BlockRows(companion) if companion else None
    task.losses(model, drawn, companion)
    assert rows.count == 5 * count + blocks * len(drawn.rows)
    if task.signal is not None:
        assert blocks == task.signal.blocks(model.spec)
    if beside:
        assert beside.count == companion.spec.depth * len(drawn.rows)


def test_no_weak_forward_while_the_weight_is_zero(seed):
    model = network(seed)
    task = task_for(model, replace(SIGNALS["uncond"], power=1.0))
    assert len(batch(task, 9, seed, progress=0.0)[0].rows) == 0
    assert len(batch(task, 9, seed, progress=0.01)[0].rows) > 0


@pytest.mark.parametrize("signal", SIGNALS)
def test_the_host_takes_no_part_in_the_losses(signal, seed):
    """What would wait for a value, or make a tensor of the host's, could not be captured as a graph."""
    model = network(seed)
    task = task_for(model, replace(SIGNALS[signal], mode="released"), padded=True)
    companion, (drawn, _) = companion_of(task, seed), batch(task, 33, seed)
    with Trace() as trace:
        task.losses(model, drawn, companion)["loss"].backward()
    assert trace.synchronising() == []
    assert not trace.host_data


@pytest.mark.parametrize("signal", ("uncond", "layer-skip", "segmented"))
def test_a_wrapped_network_is_looked_through(signal, seed):
    model = network(seed)
    task = task_for(model, SIGNALS[signal])
    drawn, _ = batch(task, 5, seed)
    wrapped = torch.nn.DataParallel(model)  # without a GPU it calls what it holds
    assert torch.equal(task.losses(wrapped, drawn)["loss"], task.losses(model, drawn)["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("signal", ("layer-skip", "segmented"))
def test_a_compiled_network_learns_the_same(signal, seed):
    model = network(seed)
    task = task_for(model, SIGNALS[signal], padded=True)
    drawn, _ = batch(task, 5, seed)
    expected = gradients(task.losses(model, drawn)["loss"], model)
    compiled = copy.deepcopy(model)
    compiled.compile(backend="eager")
    for name, gradient in gradients(task.losses(compiled, drawn)["loss"], compiled).items():
        assert torch.allclose(gradient, expected[name], rtol=0, atol=SAME), name


# --- drawing -----------------------------------------------------------------------------------------------------------


def test_the_default_draws_what_it_always_drew(seed):
    """The recipes stay reproducible: label dropout, logit-normal times and noise, in this order, from one generator."""
    spec = tiny_sit(0).spec
    x0, labels = torch.randn(9, 4, 6, 10), torch.arange(9) % 6
    drawn = VelocityTask(spec, LabelDropout(0.2, 0.4), 0.2).draw(x0, labels, torch.Generator().manual_seed(seed), 0.3)
    generator = torch.Generator().manual_seed(seed)
    kept = LabelDropout(0.2, 0.4)(labels, spec, generator)
    sigma = torch.sigmoid(torch.randn(9, generator=generator))
    eps = torch.randn(x0.shape, generator=generator)
    assert all(torch.equal(a, b) for a, b in zip(drawn[:4], (x0, kept, sigma, eps), strict=True))
    assert torch.equal(drawn.table[:, 0], 1 - sigma)
    assert torch.equal(drawn.table[:, 1], sigma)


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_weak_signal_draws_nothing_more(signal, seed):
    model = network(seed)
    plain, task = (task_for(model, each) for each in (Objective(), SIGNALS[signal]))
    x0, labels = torch.randn(11, 2, 2, 6), torch.arange(11) % 6
    a, b = (each.draw(x0, labels, torch.Generator().manual_seed(seed), 1.0) for each in (plain, task))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(a[:5], b[:5], strict=True))


def test_one_draw_has_few_shapes(seed):
    model, generator = network(seed), torch.Generator().manual_seed(seed)
    task = task_for(model, SIGNALS["uncond"], padded=True)
    x0, labels = torch.zeros(128, 2, 2, 6), torch.arange(128) % 6
    found = {tuple(each.shape for each in task.draw(x0, labels, generator, 1.0)) for _ in range(60)}
    assert len(found) <= 8  # of a binomial with a deviation of 5, in units of 8


# --- companions and refusals -------------------------------------------------------------------------------------------


def test_the_companion_learns_the_plain_velocity(seed):
    model = network(seed)
    task = task_for(model, SIGNALS["separate"])
    companion = companion_of(task, seed)
    assert companion.spec == companion_spec(model.spec, task.objective)
    assert (companion.spec.depth, companion.spec.heads, companion.spec.dim, companion.spec.exits) == (2, 1, 8, ())
    drawn, times = batch(task, 5, seed, 1.0)
    losses = task.companion_losses(companion, drawn)
    expected = NaiveObjective(Objective(), 0.2, companion).loss(drawn.x0, drawn.labels, times, drawn.eps, 1.0)
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=SAME)
    ours, theirs = gradients(losses["loss"], companion), gradients(expected, companion)
    assert all(torch.allclose(ours[name], theirs[name], rtol=0, atol=SAME) for name in ours)


@pytest.mark.parametrize("signal", ("none", "layer-skip", "branch", "separate"))
def test_networks_whose_labels_are_all_null_train(signal, seed):
    model = network(seed)
    task = VelocityTask(model.spec, LabelDropout(1.0), 0.2, SIGNALS[signal])
    drawn = task.draw(torch.randn(5, 2, 2, 6).double(), torch.arange(5), torch.Generator().manual_seed(seed), 1.0)
    assert drawn.labels.eq(model.spec.null_label).all()
    assert math.isfinite(task.losses(model, drawn, companion_of(task, seed))["loss"].item())


@pytest.mark.parametrize("signal", ("uncond", "segmented"))
def test_the_null_label_is_no_weak_signal_where_all_labels_are_null(signal):
    with pytest.raises(ValueError, match=f"{signal}.*all labels are null.*use none, layer-skip, branch or separate"):
        VelocityTask(tiny_sit(0, **TINY).spec, LabelDropout(1.0), 0.2, SIGNALS[signal])


@pytest.mark.parametrize(
    ("changes", "objective", "message"),
    [
        ({}, Objective("layer-skip", 0.3, layers=(3,)), "block 3: tiny has blocks 0 to 2"),
        ({}, Objective("branch", 0.3, layer=2), "layer 2 was given that is one of tiny's: 1"),
        ({"exits": ()}, Objective("segmented", 0.3), "no layer was given that is one of tiny's: none"),
        ({"exits": (1, 2)}, Objective("segmented", 0.3), "no layer was given that is one of tiny's: 1, 2"),
        ({}, Objective(path="cosine"), "path is 'cosine', and tiny is a network of the path 'linear'"),
        (CONVENTIONS["dit"], Objective(time="log-normal"), "objective time must be 'uniform'"),
        (CONVENTIONS["dit"] | {"out_channels": 3}, Objective(), "3 output channels for 2"),
        ({"parents": ()}, Objective(), "species 0.1 needs superclasses"),
    ],
)
def test_what_a_network_cannot_follow_is_refused_at_the_beginning(changes, objective, message):
    with pytest.raises(ValueError, match=message):
        VelocityTask(tiny_sit(0, **(TINY | changes)).spec, LabelDropout(0.1, 0.1), 0.2, objective)
