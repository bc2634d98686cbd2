"""The path of a network: what specs state of it, and its place in files."""

import json

import pytest
from safetensors import safe_open
from tiny_models import tiny_sit

from segue.models.weights import load_network, save_model


def test_the_linear_path_goes_without_saying_and_the_cosine_path_is_kept(tmp_path):
    for path in ("linear", "cosine"):
        network = tiny_sit(1, path=path)
        saved = tmp_path / f"{path}.safetensors"
        save_model(network, saved)
        assert load_network(saved)[0].spec == network.spec
        with safe_open(saved, "pt") as file:
            stated = json.loads(file.metadata()["spec"]).get("path")
        assert stated == (None if path == "linear" else "cosine")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "vp"}, "path must be linear or cosine, got 'vp'"),
        ({"path": "cosine", "time": "sigma_x1000"}, "got prediction 'velocity' and time input 'sigma_x1000'"),
        ({"path": "cosine", "prediction": "epsilon", "time": "discrete"}, "got prediction 'epsilon' and time input 'discrete'"),
    ],
)
def test_paths_that_no_network_has_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_sit(0, **changes)
