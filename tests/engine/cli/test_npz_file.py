"""Samples in ADM's form: what numpy reads is what was drawn, and an interruption anywhere loses no sample and adds none."""

import json
import tracemalloc

import numpy as np
import pytest
import torch

from segue.engine.cli.npz_file import NpzFile
from segue.engine.images import latents_to_images

MADE_BY = {"model": "herbarium", "rule": "cfg:scale=1.5", "first_seed": 0}


def pictures(seed: int, count: int) -> torch.Tensor:
    return torch.randn(count, 3, 5, 7, generator=torch.Generator().manual_seed(seed))


def opened(folder, count: int = 10, **changes) -> NpzFile:
    return NpzFile(folder / "samples.npz", count, 5, 7, MADE_BY | changes)


def expected(drawn: torch.Tensor) -> np.ndarray:
    return np.stack([np.asarray(image) for image in latents_to_images(drawn)])


def test_numpy_reads_what_was_drawn(tmp_path, seed):
    drawn, labels = pictures(seed, 10), torch.arange(10) * 3
    file = opened(tmp_path)
    for part in (slice(0, 4), slice(4, 5), slice(5, 10)):
        file.append(drawn[part], labels[part])
    path = file.finish()
    with np.load(path) as found:
        assert found.files == ["arr_0", "arr_1"]
        assert found["arr_0"].dtype == np.uint8 and np.array_equal(found["arr_0"], expected(drawn))
        assert np.array_equal(found["arr_1"], labels.numpy())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["samples.npz", "samples.npz.json"]
    assert json.loads((tmp_path / "samples.npz.json").read_text())["made_by"] == MADE_BY
    again = opened(tmp_path)
    assert again.finished and again.written == 10 and again.finish() == path


def cut_pixels(folder):
    with (folder / "samples.npz.pixels").open("r+b") as file:
        file.truncate(6 * 105 + 50)


def cut_labels(folder):
    with (folder / "samples.npz.labels").open("r+b") as file:
        file.truncate(6 * 8 + 3)


def leave_half_an_archive(folder):
    (folder / "samples.npz.part").write_bytes(b"half")


@pytest.mark.parametrize(
    ("interrupt", "kept"),
    [(lambda _: None, 8), (cut_pixels, 6), (cut_labels, 6), (leave_half_an_archive, 8)],
    ids=["between batches", "in a picture", "in a label", "in the archive"],
)
def test_a_run_goes_on_where_it_stopped(tmp_path, seed, interrupt, kept):
    drawn, labels = pictures(seed, 10), torch.arange(10)
    opened(tmp_path).append(drawn[:8], labels[:8])
    interrupt(tmp_path)
    file = opened(tmp_path)
    assert file.written == kept and not file.finished
    file.append(drawn[kept:], labels[kept:])
    with np.load(file.finish()) as found:
        assert np.array_equal(found["arr_0"], expected(drawn)) and np.array_equal(found["arr_1"], labels.numpy())


def test_raw_files_that_outlived_the_archive_are_removed(tmp_path, seed, monkeypatch):
    file = opened(tmp_path, 2)
    file.append(pictures(seed, 2), torch.tensor([1, 2]))
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            file.finish()
    opened(tmp_path, 2).finish()
    assert not list(tmp_path.glob("*.pixels")) and not list(tmp_path.glob("*.labels"))


def test_the_archive_is_made_without_holding_the_samples(tmp_path, monkeypatch):
    monkeypatch.setattr("segue.engine.cli.npz_file.COPY_BYTES", 1 << 14)
    count, batch = 8000, 1000
    file = opened(tmp_path, count)
    for _ in range(count // batch):
        file.append(torch.zeros(batch, 3, 5, 7), torch.zeros(batch, dtype=torch.int64))
    tracemalloc.start()
    try:
        path = file.finish()
        assert tracemalloc.get_traced_memory()[1] < count * 105 / 8
    finally:
        tracemalloc.stop()
    with np.load(path) as found:
        assert found["arr_0"].shape == (count, 5, 7, 3) and (found["arr_0"] == 128).all()


def test_a_file_of_another_run_is_refused(tmp_path, seed):
    opened(tmp_path).append(pictures(seed, 3), torch.zeros(3, dtype=torch.int64))
    for changes in ({"rule": "none"}, {"first_seed": 5}):
        with pytest.raises(ValueError, match=r"was begun as .*cfg:scale=1\.5.*and cannot go on as"):
            opened(tmp_path, **changes)
    with pytest.raises(ValueError, match="cannot go on as"):
        opened(tmp_path, count=11)
    (tmp_path / "other.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"other\.npz exists already, and nothing beside it says how it was made"):
        NpzFile(tmp_path / "other.npz", 3, 5, 7, MADE_BY)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda file: file.append(torch.zeros(11, 3, 5, 7), torch.zeros(11)), "0 are written, got 11 more"),
        (lambda file: file.append(torch.zeros(2, 3, 5, 7), torch.zeros(3)), "a label each"),
        (lambda file: file.append(torch.zeros(2, 3, 7, 5), torch.zeros(2)), r"pictures of \(5, 7\)"),
        (lambda file: file.append(torch.zeros(2, 4, 5, 7), torch.zeros(2)), "4 channels are not pixels"),
        (lambda file: file.append(torch.full((1, 3, 5, 7), torch.nan), torch.zeros(1)), "must be finite"),
        (lambda file: file.finish(), "needs 10 samples, and 0 are written"),
        (lambda file: NpzFile(file.path.with_suffix(".zip"), 1, 5, 7, {}), r"must end in \.npz, got .*\.zip"),
        (lambda file: NpzFile(file.path, 0, 5, 7, {}), "at least one sample, got 0"),
    ],
)
def test_bad_input_is_one_sentence_with_the_value(tmp_path, call, said):
    with pytest.raises(ValueError, match=said):
        call(opened(tmp_path))
