"""IDX files of MNIST's layout, plain and compressed, whole and not."""

import gzip
import struct

import numpy as np
import pytest
import torch

from segue.training.data.idx_source import FASHION, IdxSource

COUNT = 9


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">I{values.ndim}I", 0x800 + values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


@pytest.fixture
def digits(seed):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (COUNT, 28, 28), dtype=np.uint8), np.arange(COUNT, dtype=np.uint8) % 5


@pytest.fixture
def folder(digits, tmp_path):
    for name, values in zip(("train-images-idx3-ubyte", "train-labels-idx1-ubyte"), digits, strict=True):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
    return tmp_path


@pytest.mark.parametrize(("size", "margin"), ((None, 2), (28, 0), (33, 2)))
def test_samples_are_the_pixels_on_black_in_three_equal_channels(size, margin, folder, digits, seed):
    source = IdxSource(folder, size=size)
    side = size or 32
    x0, labels = source.batch(0, COUNT, seed)
    assert source.shape == (3, side, side) == tuple(x0.shape[1:]) and source.num_classes == 5 and source.class_names == ()
    expected = np.zeros((COUNT, side, side))
    expected[:, margin : margin + 28, margin : margin + 28] = digits[0]
    wanted = {row.tobytes(): int(label) for row, label in zip(expected.astype(np.uint8), digits[1], strict=True)}
    for sample, label in zip(x0, labels, strict=True):
        assert torch.equal(sample[0], sample[1]) and torch.equal(sample[0], sample[2])
        assert wanted[((sample[0].double() + 1) * 127.5).round().byte().numpy().tobytes()] == label


def test_plain_and_compressed_files_are_the_same_data(folder, digits, tmp_path_factory):
    plain = tmp_path_factory.mktemp("plain")
    (plain / "train-images.idx3-ubyte").write_bytes(idx(digits[0]))
    (plain / "train-labels.idx1-ubyte").write_bytes(idx(digits[1]))
    assert IdxSource(plain).fingerprint() == IdxSource(folder).fingerprint()
    changed = digits[1].copy()
    changed[0] += 1
    (plain / "train-labels.idx1-ubyte").write_bytes(idx(changed))
    assert IdxSource(plain).fingerprint() != IdxSource(folder).fingerprint()


def test_mirrors_are_by_chance(folder, seed):
    plain, mirrored = IdxSource(folder).batch(0, 100, seed)[0], IdxSource(folder, flip=True).batch(0, 100, seed)[0]
    turned = [torch.equal(a, b.flip(-1)) for a, b in zip(mirrored, plain, strict=True)]
    assert 20 < sum(turned) < 80  # six standard deviations


@pytest.mark.parametrize(
    ("name", "content", "words"),
    (
        ("train-images-idx3-ubyte.gz", lambda whole: gzip.compress(whole[:-1]), r"\[9, 28, 28\].*7,072 bytes.*7,071"),
        ("train-images-idx3-ubyte.gz", lambda whole: gzip.compress(whole + b"x"), "7,072 bytes.*7,073"),
        ("train-images-idx3-ubyte.gz", lambda whole: gzip.compress(whole)[:-9], "not a whole gzip file"),
        ("train-images-idx3-ubyte.gz", lambda whole: whole, "not a whole gzip file"),
        (
            "train-images-idx3-ubyte.gz",
            lambda whole: gzip.compress(b"\0\0\x08\x01" + whole[4:]),
            "no IDX file of images.*00000801",
        ),
        ("train-labels-idx1-ubyte.gz", lambda whole: gzip.compress(b""), "no IDX file of labels.*nothing"),
        ("train-labels-idx1-ubyte.gz", lambda _: gzip.compress(idx(np.zeros(8))), "9 images and 8 labels"),
        ("train-labels-idx1-ubyte.gz", lambda _: gzip.compress(idx(np.zeros(0))), r"\[0\]"),
    ),
)
def test_files_that_are_not_whole_are_refused(name, content, words, folder):
    whole = gzip.decompress((folder / name).read_bytes())
    (folder / name).write_bytes(content(whole))
    with pytest.raises(ValueError, match=words):
        IdxSource(folder)


def test_a_missing_file_and_bad_options_are_refused(folder):
    with pytest.raises(ValueError, match=r"size must be at least 28.*got 20"):
        IdxSource(folder, size=20)
    with pytest.raises(ValueError, match="split must be train or t10k, got 'test'"):
        IdxSource(folder, "test")
    with pytest.raises(FileNotFoundError, match="no t10k-images-idx3-ubyte"):
        IdxSource(folder, "t10k")
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="no train-labels-idx1-ubyte"):
        IdxSource(folder)


def test_fashion_is_told_by_its_labels(folder, monkeypatch):
    from segue.training.data import idx_source

    labels = torch.tensor(np.arange(COUNT) % 5, dtype=torch.uint8)
    monkeypatch.setattr(idx_source, "FASHION_LABELS", {idx_source._digest(labels)})
    monkeypatch.setattr(idx_source, "FASHION", FASHION[:5])
    source = IdxSource(folder)
    assert source.name == "fashion-mnist" and source.class_names == FASHION[:5]
