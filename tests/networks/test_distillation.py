import math

import pytest
import torch
from torch.nn import functional

from edgeclean.networks.distillation import OutputDistance, label_answers, logit_variance


@pytest.fixture
def answers() -> torch.Tensor:
    return torch.randn(64, 10, generator=torch.Generator().manual_seed(1)) * 4


@pytest.mark.parametrize("compare", ["logits", "probabilities"])
def test_only_the_teachers_own_answers_are_at_no_distance(compare, answers) -> None:
    likeness = OutputDistance(compare, logit_variance(answers))
    assert float(likeness(answers, answers)) == pytest.approx(0, abs=1e-6)
    other = answers.clone()
    other[0, 0] += 3
    assert float(likeness(other, answers)) > 1e-4


def test_the_distance_of_logits_does_not_depend_on_their_scale(answers) -> None:
    other = answers + torch.randn(64, 10, generator=torch.Generator().manual_seed(2))
    near = OutputDistance("logits", logit_variance(answers))(other, answers)
    far = OutputDistance("logits", logit_variance(100 * answers))(100 * other, 100 * answers)
    assert float(near) == pytest.approx(float(far), rel=1e-5)


def test_a_student_that_knows_only_each_classs_mean_is_at_distance_one(answers) -> None:
    mean = answers.mean(0, keepdim=True).expand_as(answers)
    assert float(OutputDistance("logits", logit_variance(answers))(mean, answers)) == pytest.approx(
        1.0
    )


def test_probabilities_are_compared_by_the_softened_divergence(answers) -> None:
    outputs = answers.roll(1, 0)
    given = OutputDistance("probabilities", 1.0)(outputs, answers)
    own, teachers = (functional.softmax(x.double() / 2, 1) for x in (outputs, answers))
    wanted = 4 * (teachers * (teachers.log() - own.log())).sum(1).mean()
    assert math.isclose(float(given), float(wanted), rel_tol=1e-4)


def test_constant_answers_have_a_variance_above_nothing() -> None:
    assert logit_variance(torch.ones(4, 3)) > 0


def test_labels_are_compared_by_cross_entropy(answers) -> None:
    labels = answers.argmin(1)
    given = OutputDistance("labels", 1.0)(answers, label_answers(labels, 10))
    wanted = functional.cross_entropy(answers, labels, label_smoothing=0.05)
    assert float(given) == pytest.approx(float(wanted), rel=1e-5)
