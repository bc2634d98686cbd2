"""The training loop: exact resume, exact averages, a schedule as stated, and a network that learns."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from training_fixtures import TINY_CLASSIFIER, TINY_SPEC, tiny_settings

from segue.models.classifiers import load_classifier
from segue.models.weights import load_network
from segue.training import loop
from segue.training.data.herbarium import Herbarium
from segue.training.loop import Trainer
from segue.training.objectives.velocity_task import VelocityTask
from tests.tolerances import FP32_AVERAGE, FP32_CAPTURED_RUN, FP32_NETWORK_LOSS

STEPS = 7


def stop_at(step: int):
    return lambda trainer, losses: trainer.step < step


def states(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Every tensor that a resumed run must agree in, by name."""
    named = {f"model.{k}": v for k, v in trainer.model.state_dict().items()}
    named |= {f"average.{k}": v for k, v in trainer.average.values.items()}
    for index, slots in trainer.trained["main"].optimizer.state_dict()["state"].items():
        named |= {f"optimizer.{index}.{k}": v for k, v in slots.items()}
    return named


def assert_same_states(ours: Trainer, theirs: Trainer) -> None:
    a, b = states(ours), states(theirs)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def log_rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def uninterrupted(tmp_path, monkeypatch) -> Trainer:
    monkeypatch.setattr(loop, "LOG_EVERY", 2)
    trainer = Trainer(TINY_SPEC, tiny_settings(steps=STEPS), tmp_path / "whole")
    assert trainer.run()
    return trainer


@pytest.mark.parametrize("stop", (1, 4, STEPS - 1))
def test_a_resumed_run_equals_one_that_never_stopped(uninterrupted, tmp_path, stop):
    folder = tmp_path / "parts"
    assert not Trainer(TINY_SPEC, tiny_settings(steps=STEPS), folder).run(stop_at(stop))
    resumed = Trainer(TINY_SPEC, tiny_settings(steps=STEPS, workers=1), folder, "resume")
    assert resumed.step == stop
    assert resumed.run()
    assert_same_states(resumed, uninterrupted)


def test_a_crash_loses_only_the_steps_since_the_last_checkpoint(uninterrupted, tmp_path):
    folder = tmp_path / "crashed"

    def crash(trainer, losses):
        if trainer.step == 5:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        Trainer(TINY_SPEC, tiny_settings(steps=STEPS, checkpoint_every=2), folder).run(crash)
    with open(folder / "log.jsonl", "a") as log:
        log.write(json.dumps({"step": 5, "loss": 9.0}) + "\n")
    resumed = Trainer(TINY_SPEC, tiny_settings(steps=STEPS), folder, "resume")
    assert resumed.step == 4
    resumed.run()
    assert_same_states(resumed, uninterrupted)
    clocks = ("seconds", "images_per_s")
    ours, whole = (
        [{k: v for k, v in row.items() if k not in clocks} for row in log_rows(f)] for f in (folder, uninterrupted.folder.path)
    )
    assert ours == whole


def test_a_run_that_is_resumed_after_its_end_does_nothing(uninterrupted):
    again = Trainer(TINY_SPEC, tiny_settings(steps=STEPS), uninterrupted.folder.path, "resume")
    assert again.run(lambda *_: pytest.fail("a step was made"))
    assert_same_states(again, uninterrupted)


def test_the_log_holds_the_means_of_the_steps_it_covers(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 3)
    seen = []
    Trainer(TINY_SPEC, tiny_settings(steps=STEPS), tmp_path).run(lambda _, losses: seen.append(losses["loss"].item()))
    rows = log_rows(tmp_path)
    assert [row["step"] for row in rows] == [3, 6, 7]
    for row, part in zip(rows, (seen[:3], seen[3:6], seen[6:]), strict=True):
        assert row["loss"] == pytest.approx(sum(part) / len(part), abs=1e-5)  # five digits are written


def test_the_average_is_the_naive_recursion(tmp_path):
    decay, naive = 0.7, []

    def follow(trainer, losses):
        current = [p.detach().double().clone() for p in trainer.model.parameters()]
        naive[:] = [decay * a + (1 - decay) * p for a, p in zip(naive, current, strict=True)] if naive else current

    trainer = Trainer(TINY_SPEC, tiny_settings(steps=STEPS, ema=decay), tmp_path)
    trainer.run(follow)
    for average, expected in zip(trainer.average.values.values(), naive, strict=True):
        assert (average.double() - expected).abs().max() <= FP32_AVERAGE * expected.abs().max()


def test_the_saved_network_is_the_average_and_loads_strictly(uninterrupted):
    network, report = load_network(uninterrupted.folder.path)
    assert network.spec == TINY_SPEC and not report.ignored
    for name, value in uninterrupted.average.values.items():
        assert torch.equal(network.state_dict()[name], value), name


def test_the_learning_rate_warms_up_and_follows_a_cosine(tmp_path):
    settings = tiny_settings(steps=40, warmup=10, learning_rate=0.02, final_learning_rate=0.1)
    trainer, used = Trainer(TINY_SPEC, settings, tmp_path), []
    for step in range(41):
        trainer.step = step
        used.append(trainer.learning_rate())
    for step in (0, 3, 9, 10, 25, 40):
        cosine = 0.1 + 0.9 * (1 + math.cos(math.pi * step / 40)) / 2
        assert used[step] == pytest.approx(0.02 * min(1, (step + 1) / 10) * cosine)
    assert used[40] == pytest.approx(0.002)


def test_a_time_limit_ends_the_run_and_lays_the_schedule_over_it(tmp_path):
    trainer = Trainer(TINY_SPEC, tiny_settings(steps=1000, minutes=2.0), tmp_path)
    trainer.seconds = 60.0
    assert trainer.progress == 0.5
    trainer.seconds = 121.0
    assert trainer.progress == 1.0 and trainer.run()
    assert trainer.step == 0


def test_a_network_overfits_one_batch(tmp_path):
    """Noise and noise levels are new at every step; the leaves are known by heart."""
    spec = replace(TINY_SPEC, patch=2)  # 12 numbers per token: less than the width, so the noise can be seen whole
    trainer = Trainer(spec, tiny_settings(warmup=10, learning_rate=1e-2), tmp_path)
    batch = next(iter(loop.batch_loader(Herbarium(), 2, seed=1)))
    losses = [trainer.train_step(batch)["velocity"].item() for _ in range(150)]
    first, last = sum(losses[:5]) / 5, sum(losses[-20:]) / 20
    assert last < 0.25 * first, (first, last)


def test_a_trainer_leaves_the_callers_random_numbers_alone(tmp_path):
    before = torch.get_rng_state()
    Trainer(TINY_SPEC, tiny_settings(steps=1), tmp_path).run()
    assert torch.equal(torch.get_rng_state(), before)


def test_two_seeds_train_two_networks(tmp_path):
    first, second = (Trainer(TINY_SPEC, tiny_settings(steps=1, seed=s), tmp_path / str(s)) for s in (0, 1))
    first.run(), second.run()
    matrices = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all((a != b).any() for a, b in matrices if a.dim() > 1 and a.any())


def test_another_seed_trains_on_other_noise(tmp_path):
    """The same network on the same leaves: only what is drawn in the step differs."""
    trainers = [Trainer(TINY_SPEC, tiny_settings(steps=1, seed=s), tmp_path / str(s)) for s in (0, 1)]
    trainers[1].model.load_state_dict(trainers[0].model.state_dict())
    batch = next(iter(loop.batch_loader(Herbarium(), 2)))
    losses = [trainer.train_step(batch)["velocity"].item() for trainer in trainers]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_a_gradient_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    trainer = Trainer(TINY_SPEC, tiny_settings(steps=STEPS), tmp_path)
    trainer.run(stop_at(2))
    saved, weights = (tmp_path / "state.pt").read_bytes(), states(trainer)
    plain = VelocityTask.losses
    monkeypatch.setattr(VelocityTask, "losses", lambda *a: {k: v * float("nan") for k, v in plain(*a).items()})
    with pytest.raises(FloatingPointError, match="nan at step 2"):
        trainer.run()
    assert (tmp_path / "state.pt").read_bytes() == saved
    assert all(torch.equal(value, weights[name]) for name, value in states(trainer).items())


def test_snapshots_are_the_averages_of_their_steps(tmp_path):
    averages = {}

    def note(trainer, losses):
        averages[trainer.step] = {name: value.clone() for name, value in trainer.average.values.items()}

    trainer = Trainer(TINY_SPEC, tiny_settings(steps=STEPS, snapshot_every=3), tmp_path)
    trainer.run(note)
    kept = trainer.folder.snapshots()
    assert list(kept) == [3, 6]
    for step, path in kept.items():
        network, _ = load_network(path)
        assert all(torch.equal(value, averages[step][name]) for name, value in network.state_dict().items())
    with pytest.raises(ValueError, match=r"keeps no weights of step 4; it keeps: 3, 6"):
        trainer.folder.weights(4)
    Trainer(TINY_SPEC, tiny_settings(steps=1), tmp_path, "fresh")
    assert trainer.folder.snapshots() == {}


def test_no_snapshot_is_kept_after_a_gradient_that_was_not_finite(tmp_path):
    """A captured step does not wait for the device, so nobody else has looked."""
    trainer = Trainer(TINY_SPEC, tiny_settings(steps=STEPS, snapshot_every=3, checkpoint_every=100), tmp_path)
    step = trainer.one_step
    trainer.one_step = lambda *drawn: step(*drawn) | {"gradient": torch.tensor(float("nan"))}
    with pytest.raises(FloatingPointError, match="nan before step 3"):
        trainer.run()
    assert trainer.folder.snapshots() == {}


def test_a_classifier_learns_species_and_resumes_exactly(tmp_path):
    settings = tiny_settings(steps=60, batch_size=16, learning_rate=1e-2)
    whole = Trainer(TINY_CLASSIFIER, settings, tmp_path / "whole")
    whole.run()
    assert not Trainer(TINY_CLASSIFIER, settings, tmp_path / "parts").run(stop_at(17))
    resumed = Trainer(TINY_CLASSIFIER, settings, tmp_path / "parts", "resume")
    resumed.run()
    assert_same_states(resumed, whole)
    rows = log_rows(tmp_path / "whole")
    chance = math.log(TINY_CLASSIFIER.num_classes)
    assert rows[-1]["loss"] < chance - 0.1
    stored = load_classifier(tmp_path / "whole")
    assert all(torch.equal(value, whole.average.values[name]) for name, value in stored.state_dict().items())


def test_the_loss_of_a_classifier_is_the_cross_entropy(tmp_path):
    trainer = Trainer(TINY_CLASSIFIER, tiny_settings(steps=2), tmp_path)
    pictures, labels = next(iter(loop.batch_loader(Herbarium(), 3)))
    trainer.train_step((pictures, labels))
    with torch.no_grad():
        logits = trainer.model(pictures).double()
    expected = (logits.logsumexp(1) - logits[torch.arange(3), labels]).mean().item()
    losses = trainer.task.losses(trainer.model, (pictures, labels))
    assert losses["loss"].item() == pytest.approx(expected, rel=FP32_NETWORK_LOSS)
    assert losses["wrong"].item() == pytest.approx((logits.argmax(1) != labels).double().mean().item())


def test_a_state_of_a_captured_run_is_resumed_on_the_cpu(uninterrupted, tmp_path):
    """A captured step keeps its rate as a tensor and asks for an optimiser that the CPU has not."""
    shutil.copytree(uninterrupted.folder.path, tmp_path / "other")
    path = uninterrupted.folder.path / "state.pt"
    saved = torch.load(path, weights_only=True)
    for group in saved["networks"]["main"]["optimizer"]["param_groups"]:
        group |= {"fused": True, "capturable": True, "lr": torch.tensor(group["lr"])}
    torch.save(saved, path)
    runs = [Trainer(TINY_SPEC, tiny_settings(steps=STEPS + 2), tmp_path / name, "resume") for name in ("whole", "other")]
    assert all(run.step == STEPS and run.run() for run in runs)
    assert_same_states(*runs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("spec", (TINY_SPEC, TINY_CLASSIFIER), ids=lambda spec: spec.name)
def test_a_captured_step_does_what_an_eager_one_does(spec, tmp_path):
    runs = {}
    for graph in (True, False):
        settings = tiny_settings(steps=12, device="cuda", graph=graph)
        runs[graph] = Trainer(spec, settings, tmp_path / str(graph))
        runs[graph].run()
    assert runs[True].one_step.graphs == 2 and runs[False].one_step.graphs == 0
    for captured, eager in zip(*(run.average.values.values() for run in (runs[True], runs[False])), strict=True):
        assert (captured - eager).abs().max() <= FP32_CAPTURED_RUN * eager.abs().max().clamp_min(1e-2)
    assert runs[True].average.updates == runs[False].average.updates == 12
