"""PCGrad, CAGrad and ConFIG against their definitions on gradients of a few dimensions."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from recsys.training.balancing.surgery import Matrix, cagrad, combined, config, pcgrad

each_seed = pytest.mark.parametrize("seed", range(5))
each_count = pytest.mark.parametrize("tasks", [2, 3, 5])


def gradients(tasks: int, seed: int, *, width: int = 12) -> Matrix:
    """Rows in conflict, one of them a hundred times another."""
    random = np.random.default_rng(seed)
    return random.normal(size=(tasks, width)) * np.geomspace(0.1, 10.0, tasks)[:, None]


def applied(method: Callable[[Matrix], Matrix], gradients_TP: Matrix) -> Matrix:
    return np.asarray(method(gradients_TP @ gradients_TP.T) @ gradients_TP)


def pcgrad_by_definition(gradients_TP: Matrix, random: np.random.Generator) -> Matrix:
    total = np.zeros(gradients_TP.shape[1])
    for own in gradients_TP:
        projected = own.copy()
        for other in random.permutation(len(gradients_TP)):
            toward = gradients_TP[other]
            if projected @ toward < 0:
                projected -= (projected @ toward) / (toward @ toward) * toward
        total += projected
    return total


@each_seed
@each_count
def test_pcgrad_equals_its_projections_one_by_one(tasks: int, seed: int) -> None:
    found = gradients(tasks, seed, width=3)
    ours = applied(lambda gramian: pcgrad(gramian, np.random.default_rng(seed)), found)
    np.testing.assert_allclose(ours, pcgrad_by_definition(found, np.random.default_rng(seed)))


def test_pcgrad_without_conflict_is_the_sum() -> None:
    found = np.abs(gradients(4, 0))
    random = np.random.default_rng(0)
    np.testing.assert_array_equal(pcgrad(found @ found.T, random), np.ones(4))


@each_seed
def test_pcgrad_of_two_conflicts_with_neither(seed: int) -> None:
    found = gradients(2, seed)
    found[1] -= 2 * found[0]
    direction = applied(lambda gramian: pcgrad(gramian, np.random.default_rng(seed)), found)
    assert (found @ direction >= -1e-9).all()


def test_pcgrad_by_hand() -> None:
    # (1, 0) and (-1, 1): each loses half of the other, (1/2, 1/2) + (0, 1).
    found = np.array([[1.0, 0.0], [-1.0, 1.0]])
    direction = applied(lambda gramian: pcgrad(gramian, np.random.default_rng(0)), found)
    np.testing.assert_allclose(direction, [0.5, 1.5])


@each_count
def test_cagrad_of_radius_zero_is_the_sum(tasks: int) -> None:
    found = gradients(tasks, 0)
    np.testing.assert_allclose(cagrad(found @ found.T, 0.0), np.ones(tasks))


@each_seed
@each_count
def test_cagrad_leaves_no_better_worst_task_in_its_ball(tasks: int, seed: int) -> None:
    radius, found = 0.4, gradients(tasks, seed)
    mean = found.mean(axis=0)
    ball = radius * np.linalg.norm(mean)
    direction = applied(lambda gramian: cagrad(gramian, radius), found) * (1 + radius**2) / tasks
    worst = (found @ direction).min()
    assert np.linalg.norm(direction - mean) == pytest.approx(ball)
    # Weak duality: no mixture of the gradients proves a bound below what was reached, and one proves it is the best.
    random = np.random.default_rng(seed)
    for mixture in random.dirichlet(np.ones(tasks), size=500):
        mixed = mixture @ found
        assert mixed @ mean + ball * np.linalg.norm(mixed) >= worst - 1e-6 * abs(worst)
    for step in random.normal(size=(500, found.shape[1])):
        other = mean + ball * step / np.linalg.norm(step)
        assert (found @ other).min() <= worst + 1e-6 * abs(worst)


def test_cagrad_by_hand() -> None:
    # Mean (1/2, 1/2), of length 0.707; by symmetry both weigh the same, so the direction is the mean, lengthened.
    direction = applied(lambda gramian: cagrad(gramian, 0.5), np.eye(2))
    np.testing.assert_allclose(direction, np.ones(2) * 1.5 / 1.25, rtol=1e-6)


def test_opposite_gradients_leave_cagrad_and_config_nothing_to_gain() -> None:
    found = np.array([[1.0, 0.0], [-1.0, 0.0]])
    np.testing.assert_allclose(applied(lambda gramian: cagrad(gramian, 0.4), found), 0.0, atol=1e-6)
    np.testing.assert_array_equal(applied(config, found), np.zeros(2))


@each_seed
@each_count
def test_config_has_the_same_positive_cosine_with_every_gradient(tasks: int, seed: int) -> None:
    found = gradients(tasks, seed)
    direction = applied(config, found)
    cosines = found @ direction / np.linalg.norm(found, axis=1) / np.linalg.norm(direction)
    assert (cosines > 0).all()
    assert max(abs(first - second) for first, second in pairwise(cosines)) < 1e-9
    assert np.linalg.norm(direction) == pytest.approx(
        sum(found @ direction) / np.linalg.norm(direction)
    )
    rescaled = applied(config, found * np.geomspace(1, 100, tasks)[:, None])
    np.testing.assert_allclose(
        rescaled / np.linalg.norm(rescaled), direction / np.linalg.norm(direction)
    )


def test_config_by_hand() -> None:
    # Along the bisector (1, 1); the projections on it are 3/sqrt(2) and 1/sqrt(2).
    np.testing.assert_allclose(applied(config, np.array([[3.0, 0.0], [0.0, 1.0]])), [2.0, 2.0])


@each_count
def test_equal_gradients_add_up_in_every_method(tasks: int) -> None:
    found = np.tile([1.0, 2.0], (tasks, 1))
    random = np.random.default_rng(0)
    total = found.sum(axis=0)
    np.testing.assert_allclose(applied(lambda gramian: pcgrad(gramian, random), found), total)
    np.testing.assert_allclose(applied(config, found), total)
    np.testing.assert_allclose(
        applied(lambda gramian: cagrad(gramian, 0.5), found), total * 1.5 / 1.25
    )


def test_tasks_without_a_gradient_are_left_out() -> None:
    found = np.array([[3.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    weights = combined(found @ found.T, 0, lambda gramian, step: config(gramian))
    np.testing.assert_allclose(weights @ found, [2.0, 2.0])
    assert weights[1] == 1.0
    alone = combined(np.diag([4.0, 0.0]), 0, lambda gramian, step: cagrad(gramian, 0.4))
    np.testing.assert_array_equal(alone, [1.0, 1.0])


def test_a_gradient_that_is_no_number_makes_all_weights_none() -> None:
    gramian = np.array([[np.inf, 0.0], [0.0, 1.0]])
    assert np.isnan(combined(gramian, 0, lambda gramian, step: config(gramian))).all()
