"""The package's annotations hold in every test: of shapes where there are any, else of types."""

import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import TypeCheckError

from edgeclean.images.augment import mixed
from edgeclean.networks.batching import images_shown


def test_a_wrong_type_is_refused():
    assert images_shown((3, 8, 8), 4) == 4
    with pytest.raises(BeartypeCallHintParamViolation, match="most"):
        images_shown((3, 8, 8), 4.5)


def test_a_wrong_shape_is_refused():
    generator = torch.Generator().manual_seed(0)
    assert mixed(torch.rand(2, 3, 4, 4), generator).shape == (2, 3, 4, 4)
    with pytest.raises(TypeCheckError, match="pixels"):
        mixed(torch.rand(3, 4, 4), generator)
