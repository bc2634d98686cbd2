"""``segue encode``: diffusers' own moments in REPA's layout, done once, whole, and by one VAE."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from image_sets import write_images
from PIL import Image
from tiny_dit import dit_vae
from tiny_sd3 import tiny_vae
from typer.testing import CliRunner

from segue.__main__ import app
from segue.engine.adapters.vae import Decoder
from segue.training.data.image_files import read_image
from segue.training.data.latent_layout import image_name, moments_name
from segue.training.data.latent_source import LatentSource
from segue.training.data.open_source import open_source
from segue.training.data.vae_moments import network_affine

NAMES = tuple(f"{genus}/{species}/{number}.png" for genus, species in ("xa", "xb", "yc") for number in range(3))


@pytest.fixture(scope="module")
def vaes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vaes")
    tiny_vae(3).save_pretrained(folder / "shifted")
    dit_vae(4).save_pretrained(folder / "dit")
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    small = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    AutoencoderTiny(**small, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).save_pretrained(folder / "tiny")
    return folder


@pytest.fixture
def images(tmp_path):
    write_images(tmp_path / "images", NAMES, size=(17, 13))
    return tmp_path / "images"


@pytest.fixture
def encode(vaes, images, tmp_path):
    """Runs the command; a refusal is one line, which is returned, and else what it prints."""

    def run(*options, data=images, vae="shifted", out="out", code=0, size=12):
        arguments = ["encode", data, "--vae", vaes / vae, "--out", tmp_path / out, "--device", "cpu", *options]
        arguments += [] if size is None else ["--size", size]
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.stderr or result.exception
        assert not code or result.stderr.count("\n") == 1
        return result.stderr if code else result.stdout

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("vae", ("shifted", "dit"))
def test_files_are_the_moments_of_diffusers_and_samples_are_scaled(vae, encode, vaes, images, tmp_path):
    from diffusers import AutoencoderKL

    encode("--batch-size", 4, vae=vae)
    theirs = AutoencoderKL.from_pretrained(vaes / vae)
    source = open_source(tmp_path / "out")
    assert (source.shape, source.class_names, source.parents) == ((4, 6, 6), ("a", "b", "c"), (0, 0, 1))
    scale, shift = theirs.config.scaling_factor, theirs.config.shift_factor or 0.0
    for item, name in enumerate(sorted(NAMES)):
        pixels = read_image(images / name, 12).float()[None] / 127.5 - 1
        with torch.no_grad():
            latents = theirs.encode(pixels).latent_dist
        stored = np.load(tmp_path / "out" / "vae-sd" / moments_name(item))
        assert stored.dtype == np.float32
        expected = torch.cat([latents.mean, latents.std], 1)[0]
        assert torch.allclose(torch.from_numpy(stored), expected, atol=1e-5)  # convolutions of another batch size
        eps = torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(item))
        ours = source.sample(item, torch.Generator().manual_seed(item))
        assert torch.allclose(
            ours, (latents.mean[0] + latents.std[0] * eps - shift) * scale, atol=1e-4
        )  # five roundings, values to 10
        assert source.labels[item] == "abc".index(name[2])


def test_what_is_scaled_for_a_network_is_undone_by_the_decoder():
    vae = tiny_vae(5)
    vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.4], latents_std=[1.5, 0.5, 2.0, 1.0])
    z = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    scale, bias = (torch.tensor(values)[:, None, None] for values in network_affine(vae))
    undone = Decoder.of(vae, 4)._without_statistics(z * scale + bias) / vae.config.scaling_factor + vae.config.shift_factor
    assert torch.allclose(undone, z, atol=1e-5)  # four roundings


def test_the_layout_is_that_of_repa(encode, images, tmp_path):
    encode("--images")
    out = tmp_path / "out"
    labels = dict(json.loads((out / "vae-sd" / "dataset.json").read_text())["labels"])
    features = sorted(str(path.relative_to(out / "vae-sd")) for path in (out / "vae-sd").rglob("*.npy"))
    pictures = sorted(str(path.relative_to(out / "images")) for path in (out / "images").rglob("*.png"))
    assert features == [f"00000/img-mean-std-{number:08d}.npy" for number in range(9)]
    assert [labels[name] for name in features] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert pictures == [f"00000/img{number:08d}.png" for number in range(9)]
    with Image.open(out / "images" / image_name(4)) as picture:
        assert np.array_equal(np.array(picture), read_image(images / sorted(NAMES)[4], 12).permute(1, 2, 0))
    assert open_source(out / "images").labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert isinstance(open_source(out), LatentSource)


def test_the_same_command_again_does_nothing_twice(encode, tmp_path, monkeypatch):
    encode("--batch-size", 2)
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "vae-sd" / moments_name(5)).unlink()
    (tmp_path / "out" / "vae-sd" / moments_name(7)).write_bytes(b"cut off")
    (tmp_path / "out" / "vae-sd" / "dataset.json").unlink()
    (tmp_path / "out" / "vae-sd" / "00000" / ".0123456789abcdef.part").write_bytes(b"half")
    read = []
    monkeypatch.setattr(
        "segue.training.data.image_source.read_image", lambda path, size: read.append(path.name) or read_image(path, size)
    )
    assert "7 are done already" in encode("--batch-size", 2)
    assert len(read) == 4 and contents(tmp_path / "out") == before  # the two, with those that they share a batch with


def test_workers_change_nothing(encode, tmp_path):
    encode()
    encode("--workers", 1, out="other")
    ours, theirs = contents(tmp_path / "out"), contents(tmp_path / "other")
    assert ours == theirs


@pytest.mark.parametrize(
    ("options", "how", "words"),
    (
        ((), {"vae": "dit"}, "another VAE"),
        ((), {"size": 10}, "another size .*12, 12.*10, 10"),
        (("--dtype", "bfloat16"), {}, "another precision .'float32', not 'bfloat16'"),
        (("--tier", "0"), {}, "other images or classes"),
    ),
)
def test_a_folder_of_something_else_is_refused(options, how, words, encode, tmp_path):
    encode()
    before = contents(tmp_path / "out")
    assert re.search(words, encode(*options, **how, code=2))
    assert contents(tmp_path / "out") == before


def test_more_images_are_other_images(encode, images, tmp_path):
    encode()
    write_images(images, ("x/a/9.png",), size=(17, 13))
    assert "other images or classes" in encode(code=2)


@pytest.mark.parametrize(
    ("options", "how", "words"),
    (
        ((), {"vae": "tiny"}, "moments are of an AutoencoderKL, and the VAE is an AutoencoderTiny"),
        ((), {"vae": "nowhere"}, "holds no VAE"),
        ((), {"size": 13}, "multiples of 2, .* got 13 x 13"),
        ((), {"size": None}, "multiples of 2, .* got 13 x 17"),
        ((), {"size": 0}, "size must be at least 1, got 0"),
        ((), {"data": Path("nowhere")}, "'nowhere' is no file or folder"),
        (("--batch-size", 0), {}, "batch-size must be at least 1, got 0"),
        (("--workers", -1), {}, "workers must be at least 0, got -1"),
        (("--dtype", "int8"), {}, "unknown dtype 'int8'"),
        (("--tier", "3"), {}, r"tier must lie in \[0, 1\], got 3"),
    ),
)
def test_what_does_not_fit_is_refused_before_any_work(options, how, words, encode, tmp_path):
    assert re.search(words, encode(*options, **how, code=2))
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_refused(encode, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    assert "holds other files" in encode(code=2)


def test_a_file_that_cannot_be_read_stops_it_or_is_left_out(encode, images, tmp_path):
    (images / "x" / "b" / "1.png").write_bytes(b"no picture")
    told = encode("--batch-size", 1, code=2)
    assert str(images / "x" / "b" / "1.png") in told and "--skip-unreadable" in told
    assert len(list((tmp_path / "out").rglob("*.npy"))) == 4  # those before it
    encode("--skip-unreadable")
    source = open_source(tmp_path / "out")
    assert len(source) == 8 and source.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert moments_name(4) not in source.files.names


def test_a_table_and_a_rotated_image_are_encoded(encode, tmp_path):
    images = tmp_path / "turned"
    images.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(np.ascontiguousarray(np.rot90(noise))).save(images / "1.png", exif=exif)
    (images / "labels.csv").write_text("image,class,parent\n1.png,rose,plant\n")
    encode(data=images / "labels.csv")
    with torch.no_grad():
        expected = tiny_vae(3).encode(torch.from_numpy(noise).permute(2, 0, 1)[None].float() / 127.5 - 1).latent_dist.mean[0]
    source = open_source(tmp_path / "out")
    assert torch.allclose(source.moments(0)[0], expected, atol=1e-5)  # as above
    assert (source.class_names, source.parents, source.parent_names) == (("rose",), (0,), ("plant",))


def test_a_full_disk_is_one_sentence_and_what_is_done_stays(encode, tmp_path, monkeypatch):
    write, written = Path.write_bytes, []

    def full(path, content):
        if path.name.endswith(".part") and "img" not in str(path) and len(written) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        written.append(path)
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    told = encode("--batch-size", 2, code=2)
    assert "No space left on device; 5 of 9 images are done, and the same command goes on" in told
    assert all(path.suffix == ".npy" or path.name == "encode.json" for path in (tmp_path / "out").rglob("*") if path.is_file())
    monkeypatch.undo()
    assert "5 are done already" in encode()
    assert len(open_source(tmp_path / "out")) == 9


def test_too_small_a_disk_is_refused_before_any_work(encode, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=100))
    assert "9 latents need 0.00 GiB, and" in encode(code=2)
    assert not (tmp_path / "out").exists()


def test_values_that_are_not_finite_are_not_written(encode, vaes, tmp_path):
    vae = tiny_vae(3)
    vae.encoder.conv_out.weight[0, 0, 0, 0] = float("inf")
    vae.save_pretrained(tmp_path / "broken")
    assert "not finite in torch.float32" in encode(vae=tmp_path / "broken", code=1)
    assert list((tmp_path / "out").rglob("*.npy")) == []


def test_an_unfinished_folder_is_told_from_a_wrong_one(encode, tmp_path):
    encode()
    (tmp_path / "out" / "vae-sd" / "dataset.json").unlink()
    with pytest.raises(FileNotFoundError, match="segue encode has not finished there"):
        open_source(tmp_path / "out")


# run in a process of its own: one that is killed is forked before any thread of torch has begun
KILLED = """
import os, random, signal, sys
from pathlib import Path
from diffusers import AutoencoderKL
from segue.engine.sources import local_vae
from segue.training.data import encoding, open_source
from segue.__main__ import app

arguments = sys.argv[2:]
random.seed(int(sys.argv[1]))
write = Path.write_bytes
kills = 0
while True:
    left, moment = random.randint(1, 13), random.choice(("in", "before", "after"))
    if not os.fork():
        def count():
            global left
            left -= 1
            return left == 0
        def die():
            os.kill(os.getpid(), signal.SIGKILL)
        def write_bytes(path, content):
            if count():
                if moment != "before":
                    write(path, content[: len(content) // 2] if moment == "in" else content)
                die()
            return write(path, content)
        Path.write_bytes = write_bytes
        app(arguments)
    _, status = os.wait()
    if not os.WIFSIGNALED(status):
        break
    kills += 1
print(kills, os.waitstatus_to_exitcode(status))
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_files(encode, vaes, tmp_path, seed):
    """Killed before, in and after the writing of a file, at least ten times; the files are those of one run."""
    write_images(tmp_path / "many", [f"{name}/{number}.png" for name in "ab" for number in range(51)], size=(16, 16))
    encode("--batch-size", 2, data=tmp_path / "many", vae="dit", out="once", size=None)
    arguments = [
        "encode",
        tmp_path / "many",
        "--vae",
        vaes / "dit",
        "--device",
        "cpu",
        "--batch-size",
        2,
        "--out",
        tmp_path / "out",
    ]
    command = [sys.executable, "-c", KILLED, seed, *arguments]
    result = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)
    kills, code = map(int, result.stdout.split()[-2:])
    assert kills >= 10 and code == 0, result.stderr
    assert contents(tmp_path / "out") == contents(tmp_path / "once")
