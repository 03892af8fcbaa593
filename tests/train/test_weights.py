"""Weights of other people: each way they are kept gives the network's own features, and every other file is named."""

import argparse
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18, resnet34
from torchvision.transforms.functional import normalize

from sagkit.model import IMAGENET_MEAN, IMAGENET_STD, extract_features, make_encoder
from sagkit.train.record import load_encoder, load_state, save_encoder, save_state
from sagkit.train.weights import published, what_is

X = torch.randint(256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def torchvisions(build=resnet18) -> nn.Module:
    torch.manual_seed(0)
    network = build(weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return torchvisions()


def features_of(network: nn.Module) -> torch.Tensor:
    """What torchvision's own network computes before its classifier."""
    classifier, network.fc = network.fc, nn.Identity()
    with torch.no_grad():
        found = network(normalize(X.float() / 255, IMAGENET_MEAN, IMAGENET_STD))
    network.fc = classifier
    return found


def prefixed(state: dict, prefix: str) -> dict:
    return {f"{prefix}{name}": value for name, value in state.items()}


def forms(network: nn.Module) -> dict[str, object]:
    """The state of a ResNet as it is kept by programs of this field."""
    state, noise = network.state_dict(), {k: torch.zeros_like(v) for k, v in network.state_dict().items()}
    children = nn.Sequential(*list(network.children())[:-1]).state_dict()
    return {
        "torchvision": state,
        "before PyTorch 0.4.1": {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
        "compiled, of several processes": prefixed(state, "module._orig_mod."),
        "VICReg's authors, backbone": {k: v for k, v in state.items() if not k.startswith("fc.")},
        "VICReg's authors, checkpoint": {
            "epoch": 3,
            "model": prefixed(state, "module.backbone.") | {"module.projector.0.weight": torch.zeros(9, 512)},
            "optimizer": {"state": {0: {"mu": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        },
        "lightly's Sequential": prefixed(children, "backbone.")
        | {"projection_head.layers.0.weight": torch.zeros(4, 512)},
        "Lightning": {"state_dict": prefixed(state, "model.backbone."), "hyper_parameters": {"lr": 0.1}, "epoch": 2},
        "MoCo": {
            "arch": "x",
            "state_dict": prefixed(noise, "module.encoder_k.") | prefixed(state, "module.encoder_q."),
        },
        "DINO": {"student": prefixed(noise, "module.backbone."), "teacher": prefixed(state, "backbone."), "epoch": 1},
        "options beside": {"args": argparse.Namespace(lr=0.1, out=None), "state_dict": state},
    }


@pytest.mark.slow  # eight networks of 11 million parameters are written and read
def test_every_way_of_keeping_a_resnet_gives_its_own_features(tmp_path, network):
    expected = features_of(network)
    for n, (form, state) in enumerate(forms(network).items()):
        torch.save(state, tmp_path / f"{n}.pth")
        encoder = load_encoder(tmp_path / f"{n}.pth")
        assert (encoder.architecture, encoder.training) == ("resnet18-imagenet", False), form
        torch.testing.assert_close(extract_features(encoder, X), expected, rtol=1e-4, atol=1e-4)
    save_file(network.state_dict(), tmp_path / "resnet18.safetensors")
    torch.testing.assert_close(
        extract_features(load_encoder(tmp_path / "resnet18.safetensors"), X), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow  # 21 million parameters
def test_the_number_of_blocks_and_the_stem_tell_resnets_apart(tmp_path):
    deeper = torchvisions(resnet34)
    torch.save(deeper.state_dict(), tmp_path / "a.pth")
    found = published(tmp_path / "a.pth")
    assert found.architecture == "resnet34-imagenet"
    torch.testing.assert_close(extract_features(found, X), features_of(deeper), rtol=1e-4, atol=1e-4)
    torch.save(make_encoder("resnet18").backbone.state_dict(), tmp_path / "b.pth")
    assert published(tmp_path / "b.pth").architecture == "resnet18"


@pytest.mark.slow  # builds transformers of 5 million parameters
def test_a_vision_transformer_comes_at_the_size_of_its_position_embeddings(tmp_path):
    timm = pytest.importorskip("timm")
    own = timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=5).eval()
    torch.save({"teacher": prefixed(own.state_dict(), "backbone.")}, tmp_path / "v.pth")
    found = published(tmp_path / "v.pth")
    assert found.size == (96, 96)
    own.reset_classifier(0)
    shown = nn.functional.interpolate(X.float() / 255, (96, 96), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = own((shown - found.mean) / found.std)
    torch.testing.assert_close(extract_features(found, X), expected, rtol=1e-4, atol=1e-4)


def test_any_other_network_of_timm_is_known_by_the_name_of_its_file_or_by_the_config_beside_it(tmp_path):
    timm = pytest.importorskip("timm")
    own = timm.create_model("mobilenetv3_small_050")
    save_file(own.state_dict(), tmp_path / "mobilenetv3_small_050.lamb_in1k.safetensors")
    tagged = published(tmp_path / "mobilenetv3_small_050.lamb_in1k.safetensors")
    assert tagged.architecture == "timm:mobilenetv3_small_050.lamb_in1k"
    (tmp_path / "hub").mkdir()
    save_file(own.state_dict(), tmp_path / "hub/model.safetensors")
    with pytest.raises(ValueError, match=r"holds \d+ arrays .*none of.*sagkit assess"):
        published(tmp_path / "hub/model.safetensors")
    (tmp_path / "hub/config.json").write_text(json.dumps({"architecture": "mobilenetv3_small_050"}))
    assert published(tmp_path / "hub/model.safetensors").feature_width == 1024


def test_an_unfinished_run_gives_the_encoder_it_has_so_far(tmp_path):
    torch.manual_seed(0)
    encoder, other = make_encoder("resnet10-w4").eval(), make_encoder("resnet10-w4")
    state = {
        "config": {"encoder": "resnet10-w4"},
        "epoch": 3,
        "method": prefixed(encoder.state_dict(), "encoder.") | prefixed(other.state_dict(), "student."),
    }
    save_state(tmp_path / "run.safetensors", state)
    found = load_encoder(tmp_path / "run.safetensors")
    torch.testing.assert_close(extract_features(found, X), extract_features(encoder, X))


class Payload:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def others(folder: Path) -> dict[str, bytes]:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, folder / "x")
    whole = (folder / "x").read_bytes()
    save_file({"a": torch.zeros(99)}, folder / "y")
    save_encoder(folder / "z", make_encoder("resnet10-w4"), "resnet10-w4")
    save_state(folder / "w", {"name": "resnet10-w4", "state": {}})
    with open(folder / "v", "wb") as file:
        import numpy as np

        np.savez(file, features=np.ones((2, 3)))
    torch.save(nn.Linear(2, 2), folder / "u")
    torch.save({"epoch": 1}, folder / "t")
    return {
        "an empty file": b"",
        "a web page": b"<!DOCTYPE html><html>404</html>",
        "a JSON file; the encoder of a run's record lies beside it": b'{"method": "vicreg"}',
        "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "a PNG picture": b"\x89PNG\r\n\x1a\n",
        "an .npz file of arrays; `sagkit assess` takes it": (folder / "v").read_bytes(),
        "a PyTorch or zip file that is cut off": whole[: len(whole) // 2],
        "a safetensors file that is cut off": (folder / "y").read_bytes()[:-9],
        "is not a complete sagkit checkpoint": (folder / "z").read_bytes()[:-9],
        "holds no whole encoder": (folder / "w").read_bytes(),
        "a network that is none of": (folder / "y").read_bytes(),
        "is a pickled Python object, and reading it could run code": (folder / "u").read_bytes(),
        "a file that is cut off or of another program": b"\x00\x01\x02",
        "holds no weights": (folder / "t").read_bytes(),
    }


@pytest.mark.parametrize("words", range(14))
def test_every_other_file_is_said_to_be_what_it_is_in_one_line(tmp_path, words):
    (told, content) = list(others(tmp_path).items())[words]
    path = tmp_path / "given.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^\S+given.pth ") as refusal:
        load_encoder(path)
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "delete" not in str(refusal.value)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_nothing_in_a_file_runs(tmp_path, save):
    path, trace = tmp_path / "f.pth", tmp_path / "ran"
    save({"state_dict": Payload(trace)}, path)
    for read in (load_encoder, load_state):
        with pytest.raises(ValueError, match=r"f.pth is"):
            read(path)
    assert not trace.exists()


def test_a_foreign_file_is_no_checkpoint_of_ours(tmp_path, network):
    save_file(network.state_dict(), tmp_path / "resnet18.safetensors")
    with pytest.raises(ValueError, match="not a complete sagkit checkpoint but a safetensors file of another program"):
        load_state(tmp_path / "resnet18.safetensors")
    assert what_is(tmp_path / "resnet18.safetensors").startswith("a safetensors file")


@pytest.mark.parametrize("form", ["torchvision", "ours"])
def test_weights_that_are_not_finite_are_refused(tmp_path, network, form):
    state = {name: value.clone() for name, value in network.state_dict().items()}
    state["layer1.0.conv1.weight"][3] = float("nan")
    if form == "ours":
        encoder = make_encoder("resnet18-imagenet")
        encoder.backbone.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
        save_encoder(tmp_path / "x.safetensors", encoder, "resnet18-imagenet")
    else:
        save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x.safetensors holds weights that are not finite \(first: .*layer1.0.conv1"):
        load_encoder(tmp_path / "x.safetensors")


def test_quantised_weights_are_not_taken_for_numbers(tmp_path, network):
    state = {k: (v * 10).char() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x.safetensors holds 122 arrays .* none of torchvision's ResNets"):
        load_encoder(tmp_path / "x.safetensors")
