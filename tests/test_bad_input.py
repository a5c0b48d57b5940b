"""Whatever a user can get wrong is named: the argument, what came, and what was expected."""

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from gradient_surgery.data.folder import FolderOfClasses, folder_splits
from gradient_surgery.data.sampling import BalancedSampler
from gradient_surgery.heads import tune_head
from gradient_surgery.losses import CrossBatchMemory, build_loss, find_loss
from gradient_surgery.mining import mine
from gradient_surgery.models import build_model, load_weights
from gradient_surgery.pair_loss import pair_masks
from gradient_surgery.surgery import GradientSurgery
from gradient_surgery.training import load_run, read_config, train

X, Y = torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])


def with_row(value):
    x = X.clone()
    x[2] = value
    return x


def call(x, y, *references):
    return lambda tmp_path: GradientSurgery()(x, y, None, *references)


def folder_with(tmp_path, **classes):
    for name, files in classes.items():
        (tmp_path / name).mkdir(parents=True)
        for file in files:
            Image.new("RGB", (8, 8)).save(tmp_path / name / file)
    return tmp_path


def truncated_image(tmp_path):
    root = folder_with(tmp_path, cats=["1.png", "2.png"], dogs=["1.png", "broken.png"])
    whole = (root / "dogs" / "broken.png").read_bytes()
    (root / "dogs" / "broken.png").write_bytes(whole[:40])
    dataset = FolderOfClasses(root)
    return [dataset[i] for i in range(len(dataset))]


def another_network(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    load_weights(build_model("small"), tmp_path / "other.safetensors")


def half_a_run(tmp_path):
    (tmp_path / "config.yaml").write_text("epochs: 1\n")
    load_run(tmp_path)


MISTAKES = {
    "embeddings of one dimension": (call(X[0], Y), ValueError, r"embeddings has shape \(4,\)"),
    "integer embeddings": (call(X.long(), Y), ValueError, "embeddings has .*int64.* floating point"),
    "no tensor": (call(X.tolist(), Y), TypeError, "embeddings is a list"),
    "labels of another length": (call(X, Y[:5]), ValueError, r"labels has shape \(5,\); expected \[6\]"),
    "labels of another shape": (call(X, Y[:, None]), ValueError, r"labels has shape \(6, 1\)"),
    "labels that are no integers": (call(X, Y.float()), TypeError, "labels has type torch.float32"),
    "labels that are true or false": (call(X, Y > 0), TypeError, "labels has type torch.bool; expected integers"),
    "one class only": (call(X, torch.zeros(6, dtype=torch.long)), ValueError, "labels give no negative pair"),
    "no positive pair": (call(X, torch.arange(6)), ValueError, "labels give no positive pair"),
    "an empty batch": (call(X[:0], Y[:0]), ValueError, r"embeddings has shape \(0, 4\)"),
    "NaN embeddings": (call(with_row(float("nan")), Y), ValueError, "embeddings contain NaN or infinity"),
    "infinite embeddings": (call(with_row(float("inf")), Y), ValueError, "embeddings contain NaN or infinity"),
    "a zero embedding": (call(with_row(0), Y), ValueError, "embeddings contain a vector of length zero"),
    "references of other dimensions": (call(X, Y, X[:, :3], Y), ValueError, "references have 3 dimensions, embeddings have 4"),
    "references without labels": (call(X, Y, X), TypeError, "reference_labels is a NoneType"),
    "zero references": (call(X, Y, with_row(0), Y), ValueError, "references contain a vector of length zero"),
    "an unknown direction": (lambda tmp_path: GradientSurgery(direction="up"), ValueError, "direction is 'up'; expected one of cosine"),
    "an unknown pair weight": (lambda tmp_path: GradientSurgery(pair_weight="big"), ValueError, "pair_weight is 'big'; expected one of constant"),
    "an unknown triplet weight": (lambda tmp_path: GradientSurgery(triplet_weight="x"), ValueError, "triplet_weight is 'x'; expected one of constant"),
    "an unknown miner": (lambda tmp_path: GradientSurgery(mining="gold"), ValueError, "mining is 'gold'; expected one of all"),
    "an unknown choice of positives": (lambda tmp_path: mine(X @ X.T, *pair_masks(Y, Y), positive="hard"), ValueError, "positive is 'hard'; expected one of all, hardest, easiest"),
    "an unknown choice of negatives": (lambda tmp_path: mine(X @ X.T, *pair_masks(Y, Y), negative="semi-hard"), ValueError, "negative is 'semi-hard'; expected one of all, hardest, semihard"),
    "an unknown loss": (lambda tmp_path: build_loss("Loss"), ValueError, "loss is 'Loss'; expected one of ContrastiveLoss"),
    "an unknown option of a loss": (lambda tmp_path: build_loss("ContrastiveLoss", m=1), ValueError, "options of ContrastiveLoss are m: "),
    "no tensor for a memory": (lambda tmp_path: CrossBatchMemory(build_loss("NCALoss"), 4)(X.tolist(), Y), TypeError, "embeddings is a list"),
    "a memory of N-pairs": (lambda tmp_path: CrossBatchMemory(build_loss("NPairsLoss"), 4), TypeError, "loss is a NPairsLoss"),
    "bins that do not end at 1": (lambda tmp_path: build_loss("HistogramLoss", delta=0.3), ValueError, "delta is 0.3"),
    "a memory of a proxy loss": (lambda tmp_path: CrossBatchMemory(build_loss("ProxyNCALoss", (3, 4)), 4), TypeError, "loss is a ProxyNCALoss"),
    "a batch larger than the memory": (lambda tmp_path: CrossBatchMemory(build_loss("NCALoss"), 4, memory_size=5)(X, Y), ValueError, "memory_size=5"),
    "a label without a proxy": (lambda tmp_path: build_loss("ArcFaceLoss", (2, 4))(X, Y), ValueError, "labels contain 2; expected 0 to 1"),
    "embeddings of another size than the proxies": (lambda tmp_path: build_loss("ArcFaceLoss", (3, 5))(X, Y), ValueError, "embeddings have 4 dimensions"),
    "a proxy loss without sizes": (lambda tmp_path: build_loss("ArcFaceLoss"), ValueError, r"ArcFaceLoss has proxies; expected proxies="),
    "a label without a boundary": (lambda tmp_path: build_loss("MarginLoss", num_classes=2)(X, Y), ValueError, "labels contain 2; expected 0 to 1"),
    "embeddings without a signal": (lambda tmp_path: build_loss("SignalToNoiseRatioContrastiveLoss")(with_row(1.0), Y), ValueError, "variance"),
    "bins that disagree": (lambda tmp_path: build_loss("HistogramLoss", n_bins=10, delta=0.1), ValueError, "delta"),
    "a loss from nowhere": (lambda tmp_path: find_loss("no.such.Loss", (2, 4)), ValueError, "no.such.Loss.*can't be imported"),
    "an unknown key": (lambda tmp_path: read_config(lr=1), ValueError, "unknown key lr; expected some of"),
    "too few classes": (lambda tmp_path: BalancedSampler(Y, num_classes=8), ValueError, "num_classes"),
    "an unreadable image": (truncated_image, Exception, r"dogs.broken\.png"),
    "no such folder": (lambda tmp_path: FolderOfClasses(tmp_path / "nowhere"), FileNotFoundError, "nowhere"),
    "a class without images": (lambda tmp_path: FolderOfClasses(folder_with(tmp_path, cats=["1.png"], dogs=["1.png"], empty=[])), Exception, "empty"),
    "a split that is missing": (lambda tmp_path: folder_splits(folder_with(tmp_path, **{"train/a": ["1.png", "2.png"], "test/b": ["1.png"]})), ValueError, "no validation"),
    "no such model": (lambda tmp_path: build_model("smal"), ValueError, "smal"),
    "weights of another network": (another_network, ValueError, "other.safetensors"),
    "a run without weights": (half_a_run, FileNotFoundError, "best.safetensors is missing"),
    "a rate between the rungs": (lambda tmp_path: tune_head(GradientSurgery, seed=0, rates=(0.01, 0.02)), ValueError, r"rates have \[0.02\]; expected numbers of LADDER"),
    "a dataset that is not there": (lambda tmp_path: train(read_config(dataset=str(tmp_path / "no")), tmp_path / "run"), FileNotFoundError, "no"),
}


@pytest.mark.parametrize("mistake, kind, message", MISTAKES.values(), ids=MISTAKES)
def test_is_named(mistake, kind, message, tmp_path):
    with pytest.raises(kind, match=message):
        mistake(tmp_path)
