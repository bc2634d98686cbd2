"""Samples in ADM's form: what numpy reads is what was drawn, and an interruption anywhere loses no sample and adds none."""

import json
import tracemalloc

import numpy as np
import pytest
import torch

from segue.engine.cli.npz_file import NpzFile, Shard
from segue.engine.images import latents_to_images

MADE_BY = {"model": "herbarium", "rule": "cfg:scale=1.5", "first_seed": 0}


def black(count: int) -> np.ndarray:
    return np.zeros((count, 5, 7, 3), np.uint8)


def pictures(seed: int, count: int) -> torch.Tensor:
    return torch.randn(count, 3, 5, 7, generator=torch.Generator().manual_seed(seed))


def opened(folder, count: int = 10, batch: int = 1, rank: int = 0, world: int = 1, **changes) -> NpzFile:
    return NpzFile(folder / "samples.npz", Shard(count, batch, rank, world), 5, 7, MADE_BY | changes)


def expected(drawn: torch.Tensor) -> np.ndarray:
    return np.stack([np.asarray(image) for image in latents_to_images(drawn)])


def test_numpy_reads_what_was_drawn(tmp_path, seed):
    drawn, labels = pictures(seed, 10), torch.arange(10) * 3
    file = opened(tmp_path)
    for part in (slice(0, 4), slice(4, 5), slice(5, 10)):
        file.append(expected(drawn[part]), labels[part])
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
    opened(tmp_path).append(expected(drawn[:8]), labels[:8])
    interrupt(tmp_path)
    file = opened(tmp_path)
    assert file.written == kept and not file.finished
    file.append(expected(drawn[kept:]), labels[kept:])
    with np.load(file.finish()) as found:
        assert np.array_equal(found["arr_0"], expected(drawn)) and np.array_equal(found["arr_1"], labels.numpy())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["samples.npz", "samples.npz.json"]


def test_raw_files_that_outlived_the_archive_are_removed(tmp_path, seed, monkeypatch):
    file = opened(tmp_path, 2)
    file.append(expected(pictures(seed, 2)), torch.tensor([1, 2]))
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
        file.append(expected(torch.zeros(batch, 3, 5, 7)), torch.zeros(batch, dtype=torch.int64))
    tracemalloc.start()
    try:
        path = file.finish()
        assert tracemalloc.get_traced_memory()[1] < count * 105 / 8
    finally:
        tracemalloc.stop()
    with np.load(path) as found:
        assert found["arr_0"].shape == (count, 5, 7, 3) and (found["arr_0"] == 128).all()


def test_a_file_of_another_run_is_refused(tmp_path, seed):
    opened(tmp_path).append(expected(pictures(seed, 3)), torch.zeros(3, dtype=torch.int64))
    made_by = (({"rule": "none"}, "rule 'cfg:scale=1.5'"), ({"first_seed": 5}, "first_seed 0"), ({"more": 1}, "more None"))
    for changes, said in made_by:
        with pytest.raises(ValueError, match=rf"was begun with {said}, and cannot go on with {next(iter(changes.values()))!r}"):
            opened(tmp_path, **changes)
    for changes, said in (({"count": 11}, "count 10"), ({"batch": 2}, "batch 1"), ({"world": 3}, "world 1")):
        with pytest.raises(ValueError, match=f"was begun with {said}, and cannot go on with {next(iter(changes.values()))}"):
            opened(tmp_path, **changes)
    (tmp_path / "other.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"other\.npz exists already, and nothing beside it says how it was made"):
        NpzFile(tmp_path / "other.npz", Shard(3), 5, 7, MADE_BY)


def test_a_shard_has_one_writer(tmp_path):
    first = opened(tmp_path, world=2)
    with pytest.raises(ValueError, match=r"another process is writing to .*samples\.npz\.0-of-2\.labels"):
        opened(tmp_path, world=2)
    assert opened(tmp_path, rank=1, world=2).written == first.written == 0


@pytest.mark.parametrize(("count", "batch", "world"), [(10, 1, 1), (63, 4, 3), (64, 4, 3), (5, 4, 3), (3, 1, 5), (1, 199, 2)])
def test_shards_are_all_samples_once_in_whole_batches(count, batch, world):
    parts = [Shard(count, batch, rank, world).samples() for rank in range(world)]
    assert [index for part in parts for index in part] == list(range(count))
    assert all(part.start % batch == 0 for part in parts if part)
    assert max(map(len, parts)) - min(map(len, parts)) <= 2 * batch


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_shard_that_ends_last_makes_the_archive_of_all(tmp_path, seed, order):
    drawn, labels = pictures(seed, 11), torch.arange(11)
    whole = NpzFile(tmp_path / "whole.npz", Shard(11), 5, 7, MADE_BY)
    whole.append(expected(drawn), labels)
    made = []
    for rank in order:
        file = opened(tmp_path, 11, 2, rank, 3)
        part = list(file.shard.samples())
        file.append(expected(drawn[part]), labels[part])
        made.append(file.finish())
        assert len(file.missing()) == 2 - order.index(rank) or made[-1]
    assert made[:2] == [None, None] and made[2].read_bytes() == whole.finish().read_bytes()
    assert opened(tmp_path, 11, 2, 0, 3).finish() == made[2]  # who comes later finds it made
    assert not list(tmp_path.glob("*of-3*"))


def test_a_part_of_a_batch_is_drawn_again_but_the_last_batch_may_be_short(tmp_path, seed):
    drawn, labels = expected(pictures(seed, 10)), torch.arange(10)
    opened(tmp_path, batch=4).append(drawn[:6], labels[:6])
    file = opened(tmp_path, batch=4)
    assert file.written == 4
    file.append(drawn[4:], labels[4:])
    del file
    assert opened(tmp_path, batch=4).written == 10


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda file: file.append(black(11), torch.zeros(11)), "0 are written, got 11 more"),
        (lambda file: file.append(black(2), torch.zeros(3)), "a label each, got uint8 of shape"),
        (lambda file: file.append(black(2).swapaxes(1, 2), torch.zeros(2)), r"pictures of \(5, 7\)"),
        (lambda file: file.append(black(2).astype(float), torch.zeros(2)), "expected uint8 pictures .* got float64"),
        (lambda file: expected(torch.zeros(2, 4, 5, 7)), "4 channels are not pixels"),
        (lambda file: file.finish(), "needs 10 samples, and 0 are written"),
        (lambda file: NpzFile(file.path.with_suffix(".zip"), Shard(1), 5, 7, {}), r"must end in \.npz, got .*\.zip"),
        (lambda file: Shard(0), "at least one sample, got 0"),
        (lambda file: Shard(3, 0), "a batch holds at least one sample, got 0"),
        (lambda file: Shard(3, 1, 2, 2), r"a rank lies in \[0, world\), got rank 2 of world 2"),
        (lambda file: Shard(3, 1, 0, 0), "got rank 0 of world 0"),
    ],
)
def test_bad_input_is_one_sentence_with_the_value(tmp_path, call, said):
    with pytest.raises(ValueError, match=said):
        call(opened(tmp_path))
