"""What a user does with a trained embedding: files in, neighbours out, and the network for other programs."""

import os
import shutil
import sys
from types import ModuleType

import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from gradient_surgery import serving, training
from gradient_surgery.data.folder import read_image
from gradient_surgery.data.transforms import normalise
from gradient_surgery.serving import embed_images, export, find_images, read_embeddings, search, show_search, write_embeddings
from gradient_surgery.training import load_run, read_config, train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")


@pytest.fixture(scope="module")
def runs(photos, tmp_path_factory):
    "Two runs of one network, which differ by their seed."
    folder, patch = tmp_path_factory.mktemp("runs"), pytest.MonkeyPatch()
    patch.setattr(training, "draw", lambda *_: None)
    for seed in (0, 1):
        small = {"image_size": 32, "embedding_size": 16, "num_classes": 6, "per_class": 3, "epochs": 1}
        train(read_config(dataset=str(photos), seed=seed, precision="no", **small), folder / str(seed), quiet=True)
    patch.undo()
    return folder


def test_sources_are_images_and_folders(photos, tmp_path):
    image = photos / "class03" / "2.png"
    assert find_images([image, photos / "class03", image]) == [image, *(photos / "class03" / f"{i}.png" for i in (0, 1, 3, 4, 5))]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_images([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="hold no image"):
        find_images([tmp_path])


def test_embeddings_are_the_models_and_survive_the_disk(photos, runs, tmp_path):
    paths, embeddings = embed_images(runs / "0", [photos])
    model, _ = load_run(runs / "0")
    images = torch.stack([read_image(path, size=32) for path in paths[:5]])
    torch.testing.assert_close(embeddings[:5], normalize(model.eval()(normalise(images))).detach())
    write_embeddings(tmp_path / "all.parquet", paths, embeddings, run=runs / "0")
    again, same = read_embeddings(tmp_path / "all.parquet", run=runs / "0")
    assert again == paths and torch.equal(same, embeddings)
    table = pd.read_parquet(tmp_path / "all.parquet")
    assert list(table.columns) == ["path", "embedding"] and len(table) == 180 and len(table.embedding[0]) == 16


def test_an_index_finds_its_images_from_another_folder(photos, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    paths, embeddings = embed_images(runs / "0", ["class03"])
    write_embeddings(tmp_path / "new" / "few.parquet", paths, embeddings, run=runs / "0")  # whose folder is made
    monkeypatch.chdir(tmp_path)
    found, _ = read_embeddings(tmp_path / "new" / "few.parquet", run=runs / "0")
    assert found == [photos / "class03" / f"{i}.png" for i in range(6)]


def test_search_finds_what_is_most_similar(photos, runs, tmp_path):
    paths, embeddings = embed_images(runs / "0", [photos])
    write_embeddings(tmp_path / "all.parquet", paths, embeddings, run=runs / "0")
    asked, found, similarity = search([paths[7], paths[100]], tmp_path / "all.parquet", run=runs / "0", k=4)
    assert asked == [paths[7], paths[100]]
    for query, row, values in zip((7, 100), found, similarity):
        best = (embeddings @ embeddings[query]).sort(descending=True)
        torch.testing.assert_close(values, best.values[:4])
        assert row == [paths[i] for i in best.indices[:4]]
    show_search(asked, found, similarity, path=tmp_path / "found.png")
    assert Image.open(tmp_path / "found.png").width > 300


def test_an_index_of_other_weights_is_refused(photos, runs, tmp_path):
    paths, embeddings = embed_images(runs / "0", [photos / "class00"])
    write_embeddings(tmp_path / "few.parquet", paths, embeddings, run=runs / "0")
    with pytest.raises(ValueError, match="made by other weights"):
        search(paths[:1], tmp_path / "few.parquet", run=runs / "1")
    with pytest.raises(FileNotFoundError, match="none.parquet"):
        read_embeddings(tmp_path / "none.parquet", run=runs / "0")
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(ValueError, match="no table of embeddings"):
        read_embeddings(tmp_path / "text.parquet", run=runs / "0")


def test_an_index_that_lost_its_metadata_says_so(photos, runs, tmp_path):
    from pyarrow import parquet

    write_embeddings(tmp_path / "few.parquet", *embed_images(runs / "0", [photos / "class00"]), run=runs / "0")
    parquet.write_table(parquet.read_table(tmp_path / "few.parquet").replace_schema_metadata(None), tmp_path / "few.parquet")
    with pytest.raises(ValueError, match="does not say which weights made it"):
        read_embeddings(tmp_path / "few.parquet", run=runs / "0")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_text_is_refused(photos, runs, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy(photos / "class00" / "0.png", tmp_path / name)
    with pytest.raises(ValueError, match="is not UTF-8; rename it"):
        embed_images(runs / "0", [tmp_path])


def test_a_broken_image_is_named(runs, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="broken.png"):
        embed_images(runs / "0", [tmp_path])


def opened(path):
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        assert [each.type for each in session.get_inputs()] == ["tensor(uint8)"]
        return lambda images: torch.from_numpy(session.run(["embeddings"], {"images": images.numpy()})[0])
    return torch.jit.load(path) if path.suffix == ".pt" else torch.export.load(path).module()


@pytest.mark.parametrize("name", ["network.pt", "network.pt2", "network.onnx"])
def test_an_exported_network_is_the_same(photos, runs, tmp_path, name):
    if name.endswith(".onnx"):
        for package in ("onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason=f"needs {package}, of the extra onnx")
    assert export(runs / "0", tmp_path / name) < 1e-4
    paths, embeddings = embed_images(runs / "0", [photos / "class05"])
    images = torch.stack([read_image(path, size=32) for path in paths])
    network = opened(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]  # weights are inside
    for count in (1, 6):
        torch.testing.assert_close(network(images[:count]), embeddings[:count], atol=1e-4, rtol=0)


def test_a_script_can_move_to_another_device(runs, tmp_path):
    export(runs / "0", tmp_path / "network.pt")
    script = torch.jit.load(tmp_path / "network.pt")
    assert {"mean", "std"} <= dict(script.named_buffers()).keys()  # which `.to(device)` moves, as it does not move constants
    constants = [line for line in str(script.inlined_graph).splitlines() if "prim::Constant[" in line]
    assert constants and not [line for line in constants if "Float(3" in line]


def test_a_device_is_no_place_for_a_file(runs, tmp_path):
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(ValueError, match="folder.pt is no file that could be replaced"):
        export(runs / "0", tmp_path / "folder.pt")
    (tmp_path / "link.pt").symlink_to(tmp_path / "target.pt")
    export(runs / "0", tmp_path / "link.pt")
    assert (tmp_path / "link.pt").is_symlink() and (tmp_path / "target.pt").is_file()


def test_an_export_that_differs_is_not_written(runs, tmp_path, monkeypatch):
    write, _ = serving.FORMATS[".pt"]
    monkeypatch.setitem(serving.FORMATS, ".pt", (write, lambda path: lambda images: torch.full((len(images), 16), torch.nan if len(images) == 1 else 0)))
    monkeypatch.setattr(serving.Deployed, "forward", lambda self, images: torch.zeros(len(images), 16) + 0 * images.sum())
    with pytest.raises(RuntimeError, match="differs from the run's by nan"):
        export(runs / "0", tmp_path / "network.pt")
    monkeypatch.undo()
    monkeypatch.setitem(serving.FORMATS, ".pt", (write, lambda path: lambda images: torch.zeros(len(images), 16)))
    with pytest.raises(RuntimeError, match="differs"):
        export(runs / "0", tmp_path / "network.pt")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="ends in one of .pt, .pt2, .onnx"):
        export(runs / "0", tmp_path / "network.bin")


@pytest.mark.parametrize("missing", ["onnxscript", "onnxruntime"])
def test_without_onnx_it_is_said_what_to_install(runs, tmp_path, monkeypatch, missing):
    for package in ("onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None if package == missing else ModuleType(package))
    with pytest.raises(ImportError, match=rf"{missing}: pip install 'gradient_surgery\[onnx\]'"):
        export(runs / "0", tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())
