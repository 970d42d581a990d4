"""torchvision's transforms as views: what it would have done, and the same again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from softlabels.errors import InputError
from softlabels.inputs.transforms import torchvision_views

try:
    from torchvision.transforms import v2
except (ImportError, RuntimeError):  # builds for another torch lack their operators
    pytest.skip("torchvision is not installed", allow_module_level=True)

IMAGE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


def many() -> v2.Compose:
    return v2.Compose(
        [
            v2.RandomResizedCrop(6, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.2, 0.2, 0.2, 0.1),
            v2.Compose([v2.RandomRotation(20), v2.GaussianBlur(3), v2.RandomErasing(p=0.5)]),
            v2.RandomAffine(10, translate=(0.1, 0.1)),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )


def test_stored_parameters_make_what_torchvision_makes_of_the_seed() -> None:
    views = torchvision_views(many(), count=6, seed=3)
    for view in range(6):
        told = views.params("key", view, IMAGE, None)
        assert told is not None
        found = views.realise(IMAGE, told, None)
        np.testing.assert_array_equal(found, views.realise(IMAGE, told, None))
        rng = np.random.default_rng(views._seed("key", view))
        torch.manual_seed(int(rng.integers(1 << 62)))
        expected = many()(torch.from_numpy(IMAGE).movedim(-1, 0)).movedim(0, -1).numpy()
        np.testing.assert_array_equal(found, expected)
    assert set(views.identity.libraries) == {"torch", "torchvision"}


def test_a_transform_that_tells_nothing_is_kept_by_its_seed() -> None:
    with pytest.raises(InputError, match=r"RandAugment does not draw.*keep='seeds'"):
        torchvision_views(v2.RandAugment(), count=2)
    views = torchvision_views(v2.RandAugment(), count=2, keep="seeds")
    told = [views.params("key", view, IMAGE, None) for view in range(2)]
    assert all(set(json.loads(one or "")) == {"seed"} for one in told)
    one, again, other = (views.realise(IMAGE, told[n], None) for n in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_arrays_may_have_their_channels_first() -> None:
    flip = torchvision_views(v2.RandomHorizontalFlip(p=1.0), count=1, channels_last=False)
    told = flip.params(0, 0, IMAGE.transpose(2, 0, 1), None)
    found = flip.realise(IMAGE.transpose(2, 0, 1), told, None)
    np.testing.assert_array_equal(found, IMAGE.transpose(2, 0, 1)[:, :, ::-1])
