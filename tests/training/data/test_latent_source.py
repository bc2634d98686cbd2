"""Stored latents: drawn from their moments, scaled, and paired with their labels by name."""

import json

import numpy as np
import pytest
import torch
from image_sets import write_latents

from segue.training.data.latent_layout import features_folder
from segue.training.data.latent_source import LatentSource
from segue.training.data.unreadable import UnreadableSample

NAMES = tuple(f"00000/img-mean-std-{number:08d}.npy" for number in range(7))
LABELS = {name: number % 4 for number, name in enumerate(NAMES)}


@pytest.fixture
def repa(tmp_path):
    return write_latents(tmp_path / "vae-sd", LABELS)


def test_samples_have_the_moments_of_their_files_scaled(repa, tmp_path, seed):
    source = LatentSource(tmp_path)
    assert (source.shape, source.num_classes, source.name) == ((4, 5, 3), 4, tmp_path.name)
    passes, label = 150, 3  # of one file alone
    x0, labels = source.batch(0, passes * len(NAMES), seed)
    mean, std = np.split(repa[NAMES[label]].astype(np.float64), 2)
    drawn = x0[labels == label].double().numpy() / 0.18215
    assert (np.abs(drawn.mean(0) - mean) < 5 * std / passes**0.5 + 1e-5).all()  # five standard errors, and fp32
    assert np.abs(drawn.std(0) / std - 1).max() < 5 / (2 * passes) ** 0.5  # likewise of a standard deviation


def test_a_sample_is_mean_and_deviation_with_noise_of_the_stream(tmp_path, seed):
    moments = write_latents(tmp_path, LABELS, latents_scale=[1.0, 2.0, -3.0, 0.5], latents_bias=[0.0, 1.0, 2.0, -1.0])
    source = LatentSource(tmp_path)
    for item, name in enumerate(NAMES):
        eps = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(item))
        mean, std = torch.from_numpy(moments[name]).double().split(4)
        expected = (mean + std * eps) * torch.tensor([1.0, 2, -3, 0.5])[:, None, None] + torch.tensor([0.0, 1, 2, -1])[
            :, None, None
        ]
        ours = source.sample(item, torch.Generator().manual_seed(item))
        assert torch.allclose(ours.double(), expected, atol=1e-5)  # three roundings in fp32 of values below 10


def test_noise_is_new_in_every_pass(repa, tmp_path, seed):
    source = LatentSource(tmp_path)
    x0 = torch.cat([source.batch(index, len(NAMES), seed)[0] for index in range(3)])
    assert len(torch.unique(x0.flatten(1), dim=0)) == 3 * len(NAMES)


def test_the_folder_itself_and_the_one_around_it_are_the_same(repa, tmp_path):
    assert features_folder(tmp_path) == features_folder(tmp_path / "vae-sd")
    inner, outer = LatentSource(tmp_path / "vae-sd"), LatentSource(tmp_path)
    assert inner.fingerprint() == outer.fingerprint() and inner.name == outer.name


def test_a_leading_extent_of_one_and_half_precision_are_read(tmp_path):
    moments = write_latents(tmp_path, LABELS)
    np.save(tmp_path / NAMES[2], moments[NAMES[2]][None])
    np.save(tmp_path / NAMES[3], moments[NAMES[3]].astype(np.float16))
    source = LatentSource(tmp_path)
    assert torch.equal(torch.cat(source.moments(2)), torch.from_numpy(moments[NAMES[2]]))
    assert torch.equal(torch.cat(source.moments(3)), torch.from_numpy(moments[NAMES[3]].astype(np.float16)).float())


def test_names_and_superclasses_beside_the_labels_are_read(tmp_path):
    keys = {"class_names": ["a", "b", "c", "d", "e"], "parents": [0, 0, 1, 1, 1], "parent_names": ["x", "y"]}
    write_latents(tmp_path, LABELS, **keys)
    source = LatentSource(tmp_path)
    assert (source.num_classes, source.class_names, source.parents) == (5, ("a", "b", "c", "d", "e"), (0, 0, 1, 1, 1))
    flat = LatentSource(tmp_path, tier=0)
    assert flat.parents == () and flat.fingerprint() != source.fingerprint()
    with pytest.raises(ValueError, match=r"tier must be 0.*got 1"):
        LatentSource(tmp_path, tier=1)


def change(tmp_path, **keys):
    path = tmp_path / "vae-sd" / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


PAIRS = [[name, label] for name, label in LABELS.items()]


@pytest.mark.parametrize(
    ("keys", "words"),
    (
        ({"labels": None}, "no labels .*null"),
        ({"labels": PAIRS[2:]}, rf"2 latents have no label .*{NAMES[0]}.*{NAMES[1]}"),
        ({"labels": [*PAIRS, ["x.npy", 0], ["y.npy", 0]]}, "2 labels have no file .'x.npy', 'y.npy'"),
        ({"labels": [*PAIRS[1:], ["x.npy", 0]]}, "1 latents have no label .*; 1 labels have no file"),
        ({"labels": [*PAIRS, [NAMES[0], 3]]}, "two labels, 0 and 3"),
        ({"labels": [[name, [0.0, 1.0]] for name in NAMES]}, "whole numbers from 0"),
        ({"labels": [[name, -1] for name in NAMES]}, "whole numbers from 0.*-1"),
        ({"labels": {"a": 1}}, "list of pairs"),
        ({"class_names": ["a", "b"]}, "labels below 4"),
        ({"parents": [0, 0, 2, 2]}, "without a gap"),
        ({"latents_scale": [1.0] * 4}, "latents_bias .*4 numbers"),
        ({"latents_scale": [1.0] * 3, "latents_bias": [0.0] * 4}, "latents_scale .*4 numbers"),
    ),
)
def test_labels_that_do_not_fit_are_refused_with_counts_and_names(keys, words, repa, tmp_path):
    change(tmp_path, **keys)
    with pytest.raises(ValueError, match=words):
        LatentSource(tmp_path)


def test_files_of_another_shape_are_counted_and_named(repa, tmp_path):
    for name in NAMES[3:5]:
        np.save(tmp_path / "vae-sd" / name, np.zeros((8, 5, 4), np.float32))
    with pytest.raises(ValueError, match=rf"2 of 7 latents .*\[8, 5, 3\].*{NAMES[3]}.*{NAMES[4]}.*\[8, 5, 4\]"):
        LatentSource(tmp_path)


@pytest.mark.parametrize(
    ("values", "words"),
    (
        (np.zeros((7, 5, 3), np.float32), r"\[7, 5, 3\]"),
        (np.zeros((8, 5), np.float32), r"\[8, 5\]"),
        (np.zeros((8, 5, 3), np.int64), "int64, no floating-point"),
        (np.array([{}] * 120), "pickle|object"),
    ),
)
def test_what_is_no_moments_is_refused(values, words, tmp_path):
    write_latents(tmp_path, {"a.npy": 0})
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(ValueError, match=words):
        LatentSource(tmp_path)


@pytest.mark.parametrize("fault", ("cut", "transposed", "negative", "infinite"))
def test_a_file_that_spoils_later_is_named(fault, repa, tmp_path):
    source, path = LatentSource(tmp_path), tmp_path / "vae-sd" / NAMES[5]
    values = repa[NAMES[5]].copy()
    values[-1, -1, -1] = {"negative": -1.0, "infinite": np.inf}.get(fault, 1.0)
    np.save(path, values.transpose(0, 2, 1) if fault == "transposed" else values)
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UnreadableSample, match=NAMES[5]) as caught:
        source.batch(0, len(NAMES), 0)
    assert "\n" not in str(caught.value)


def test_another_number_of_channels_needs_its_scale(tmp_path):
    write_latents(tmp_path, LABELS, shape=(6, 4, 4))
    with pytest.raises(ValueError, match="no latents_scale, and latents of 3 channels"):
        LatentSource(tmp_path)


def test_what_was_taken_for_granted_is_told(repa, tmp_path):
    assert "0.18215" in LatentSource(tmp_path).notes[0]
