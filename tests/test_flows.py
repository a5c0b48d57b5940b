"""Flows on the sphere: they follow the gradient, one triplet or many, and the drift tells where the sum of it leads."""

import math

import pytest
import torch

from gradient_surgery.anatomy import example_batch, relative_error
from gradient_surgery.flows import (
    COLLAPSE,
    COLLAPSE_SMOKE,
    NearestLoss,
    circulation,
    collapse,
    drift,
    flow,
    loop,
    nearest_loss,
    particles,
    triplet_flow,
)
from gradient_surgery.geometry import to_sphere
from gradient_surgery.losses import SelectivelyContrastiveTripletLoss
from gradient_surgery.mining import MINING
from gradient_surgery.pair_loss import pair_masks
from gradient_surgery.surgery import GradientSurgery


def drift_of(loss, f, labels):
    S = f @ f.T
    return drift(loss.coefficients(S, labels)[1].flatten(), S.flatten()).item()


def mean_negative(f, labels):
    return (f @ f.T)[labels[:, None] != labels].mean().item()


def test_particles_are_classes_round_the_last_axis():
    f, labels = particles(3, 5, dimensions=7, seed=2)
    assert f.shape == (15, 7) and labels.bincount().tolist() == [5, 5, 5]
    assert torch.allclose(f.norm(dim=1), torch.ones(15, dtype=f.dtype)) and (f[:, -1] > 0).all()
    assert torch.equal(f, particles(3, 5, dimensions=7, seed=2)[0])
    assert not torch.equal(f, particles(3, 5, dimensions=7, seed=3)[0])


@pytest.mark.parametrize("direction", ("cosine", "euclidean", "geodesic"))
def test_a_step_of_a_flow_is_a_step_along_the_gradient(direction):
    f, labels = particles()
    loss = GradientSurgery(direction, "linear", "sigmoid", "all")
    x = f.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x, labels), x)
    moved = torch.diff(flow(loss, f, labels, steps=1, step=1e-4), dim=0)[0]
    assert torch.nn.functional.cosine_similarity(moved.flatten(), -gradient.flatten(), dim=0) > 1 - 1e-6
    assert math.isclose(moved.square().sum(1).mean().sqrt(), 1e-4, rel_tol=1e-6)


def test_what_is_shared_moves_all_alike():
    f, labels = particles()
    loss = GradientSurgery("cosine", "constant", "hinge", "hardest")
    x = f.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x, labels), x)
    expected = to_sphere(f - 1e-3 * gradient.sum(0) / gradient.sum(0).norm())[0]
    assert torch.allclose(flow(loss, f, labels, steps=1, step=1e-3, shared=1.0)[1], expected)


def test_particles_without_a_gradient_stay():
    f = torch.eye(3, dtype=torch.float64).repeat_interleave(2, 0)  # nothing violates the margin
    way = flow(GradientSurgery("euclidean", "constant", "hinge", "all"), f, torch.tensor([0, 0, 1, 1, 2, 2]), steps=3)
    assert torch.equal(way[-1], f)


def test_one_triplet_falls_down_its_loss():
    loss = GradientSurgery("euclidean", "constant", "sigmoid")
    start = torch.tensor([[-0.5, 0.2, 0.9], [0.6, 0.1, -0.3], [0.0, 0.1, -0.2]], dtype=torch.float64)
    way = triplet_flow(loss.pair_coefficients, start, steps=100)
    value = loss.triplet_weight.potential(loss.gap(way[:, 0], way[:, 1]))
    assert way.shape == (101, 3, 3) and (value.diff(dim=0) < 0).all()


def test_a_pair_alone_leaves_the_other_where_it_was_at_a_right_angle():
    start = torch.tensor([0.3, 0.4, 0.3 * 0.4], dtype=torch.float64)
    pull = lambda s_ap, s_an: (-torch.ones_like(s_ap), torch.zeros_like(s_an))
    way = triplet_flow(pull, start, steps=1, step=1e-3)
    assert way[1, 0] > start[0] and torch.isclose(way[1, 1], start[1], atol=1e-12)
    tied = triplet_flow(pull, torch.tensor([0.3, 0.4, 0.9], dtype=torch.float64), steps=1, step=1e-3)
    assert tied[1, 1] > 0.4


def test_drift_is_the_direction_of_the_sum():
    pull, push = torch.tensor([-1.0, 0.0]), torch.tensor([0.0, 1.0])
    s = torch.tensor([0.2, 0.9])
    assert drift(pull, s) == -1 and drift(push, s) == 1 and drift(0 * pull, s) == 0
    assert drift(pull + push, s) < 0 < drift(pull + push, s.flip(0))  # the nearer pair counts less


@pytest.mark.parametrize("loss, sign", [
    (GradientSurgery("euclidean", "constant", "hinge", "hardest"), -1),
    (GradientSurgery("euclidean", "constant", "hinge", "semihard"), 1),
    (SelectivelyContrastiveTripletLoss(), 1),
])
def test_with_shared_motion_the_drift_foretells_where_all_go(loss, sign):
    f, labels = particles()
    end = flow(loss, f, labels, steps=60, shared=0.8)[-1]
    assert drift_of(loss, f, labels) * sign > 0
    assert (mean_negative(f, labels) - mean_negative(end, labels)) * sign > 0.02


def test_a_triplet_weight_does_not_change_the_drift_of_a_triplet():
    s_ap, s_an = torch.tensor([0.1, 0.7]), torch.tensor([0.4, 0.6])
    of = lambda T: drift(
        torch.stack(GradientSurgery("geodesic", "linear", T).pair_coefficients(s_ap, s_an), -1),
        torch.stack([s_ap, s_an], -1))
    assert torch.allclose(of("sigmoid"), of("constant")) and torch.allclose(of("circle"), of("constant"))


@pytest.mark.parametrize("direction", ("cosine", "euclidean", "geodesic"))
def test_the_nearest_loss_is_the_loss_where_there_is_one(direction):
    theta = torch.pi / 40 * (torch.arange(40, dtype=torch.float64) + 0.5)
    s = theta.cos()
    loss = GradientSurgery(direction, "constant", "sigmoid")
    phi, remainder = nearest_loss(loss.pair_coefficients, 40)
    exact = loss.triplet_weight.potential(loss.gap(s[None], s[:, None]))
    assert remainder < 0.01 and (phi - exact + exact.min()).abs().max() < 0.02
    for weights in ("linear", "hinge"), ("linear", "sigmoid"), ("constant", "circle"):
        assert nearest_loss(GradientSurgery(direction, *weights).pair_coefficients, 40)[1] > 0.1


def test_the_nearest_loss_is_divided_by_all_that_were_selected():
    x, labels = example_batch()
    loss = NearestLoss("euclidean", "linear", "hinge", "easy_positive_semihard")
    f, _ = to_sphere(x)
    S = f @ f.T
    triplets = loss.mining(S, *pair_masks(labels, labels, torch.arange(len(x))))
    chosen = triplets.selected[:, 0, 0]
    s_ap, s_an = (S.gather(1, columns.view(-1, 1))[chosen, 0] for columns in triplets[:2])
    acts = loss.triplet_weight.weight(loss.gap(s_ap, s_an)) > 0
    assert 0 < acts.sum() < len(acts)  # the hinge lets some of them go, the table does not
    c_ap, c_an = (c.detach() for c in loss.pair_coefficients(s_ap, s_an))
    naive = (c_ap * s_ap + c_an * s_an).mean()
    assert relative_error(*(torch.autograd.grad(value, x, retain_graph=True)[0] for value in (loss(x, labels), naive))) < 1e-10


def test_a_rotation_has_no_loss_at_all():
    turn = lambda s_ap, s_an: (  # by the angles: (-θ_an, θ_ap) about the middle
        (s_an.arccos() - torch.pi / 2) / (1 - s_ap**2).sqrt(), -(s_ap.arccos() - torch.pi / 2) / (1 - s_an**2).sqrt())
    phi, remainder = nearest_loss(turn)
    assert remainder > 0.5


def test_work_round_a_closed_way_tells_a_loss_from_none():
    coarse, fine = loop(steps=500), loop(steps=2000)
    of = lambda *composition: [abs(circulation(GradientSurgery(*composition), *way)) for way in (coarse, fine)]
    assert all(found < 1e-4 for found in of("euclidean", "linear", "constant", "all"))  # smooth, and a loss
    assert of("geodesic", "constant", "hinge", "hardest")[1] < 1.5e-3  # a loss with edges
    for composition in (("cosine", "linear", "sigmoid", "all"), ("cosine", "constant", "constant", "semihard")):
        with_coarse, with_fine = of(*composition)
        assert min(with_coarse, with_fine) > 0.01 and with_fine > with_coarse / 2  # and not for want of steps


def test_a_network_collapses_with_hardest_triplets_and_not_with_semihard_ones():
    hardest, semihard = (collapse(mining=mining, steps=8, num_classes=6) for mining in ("hardest", "semihard"))
    assert hardest["metrics"]["drift"] < 0 < semihard["metrics"]["drift"]
    start = hardest["metrics"]["negative similarity at start"]
    assert start == semihard["metrics"]["negative similarity at start"]  # the same weights and batch
    assert semihard["metrics"]["negative similarity"] < start < hardest["metrics"]["negative similarity"]
    assert len(hardest["course"]) == 8 and hardest["course"][0] == round(start, 4)
    assert all(math.isfinite(value) for value in hardest["metrics"].values())


def test_the_same_seed_gives_the_same_run(monkeypatch):
    monkeypatch.setattr("gradient_surgery.flows._recall", lambda model, dataset: model.head.weight.sum().item())
    first, second = (collapse(seed=1, steps=2, num_classes=4) for _ in range(2))
    assert first == second


def test_the_grids_name_what_there_is():
    for grid in (COLLAPSE, COLLAPSE_SMOKE):
        assert set(grid["mining"]) <= set(MINING)
        GradientSurgery(*(grid[name][0] for name in ("direction", "pair_weight", "triplet_weight", "mining")))
