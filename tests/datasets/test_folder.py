"""Folders of images."""

import numpy as np
import pytest
import torch
from conftest import keys
from PIL import Image

from fedmerge import datasets
from fedmerge.datasets import folder as folders
from fedmerge.errors import InputError


@pytest.fixture
def two_domains(tmp_path):
    """data/pets/{drawn,real}/{cat,dog}: 10 small PNGs each; the real ones 40 x 20 and grey, the drawn ones 24 x 24."""
    rng = np.random.default_rng(0)
    for domain, shape in (("drawn", (24, 24, 3)), ("real", (20, 40))):
        for pet in ("cat", "dog"):
            folder = tmp_path / "pets" / domain / pet
            folder.mkdir(parents=True)
            for i in range(10):
                Image.fromarray(rng.integers(256, size=shape, dtype="u1")).save(folder / f"{i}.png")
    (tmp_path / "pets" / "drawn" / "cat" / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_of_domains_is_read_resized_and_split(two_domains):
    splits = datasets.load_dataset("pets", two_domains, 0, shift="feature")
    assert splits.domains == ("drawn", "real")
    assert (len(splits.train), len(splits.val), len(splits.test), splits.n_classes) == (29, 3, 8, 2)
    assert splits.train.images.shape[1:] == (3, 32, 32)
    groups = (2 * splits.test.domains + splits.test.labels).bincount()
    assert groups.tolist() == [2, 2, 2, 2]  # a fifth of every class of every domain
    again = datasets.load_dataset("pets", two_domains, 1, shift="feature")
    assert torch.equal(again.test.images, splits.test.images)
    large = datasets.load_dataset("pets", two_domains, 0, image_size=24)
    drawn = keys(large.test[large.test.domains == 0])
    files = (two_domains / "pets" / "drawn").glob("*/*.png")
    exact = {np.array(Image.open(path)).transpose(2, 0, 1).tobytes() for path in files}
    assert {pixels for _, pixels in drawn} <= exact  # of that size already


def test_a_bad_folder_is_refused_in_one_line(two_domains):
    bad = two_domains / "pets" / "real" / "dog" / "3.png"
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(InputError, match=r"3\.png: not an image") as caught:
        datasets.load_dataset("pets", two_domains, 0)
    assert "\n" not in str(caught.value)
    (two_domains / "none" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match="no images in"):
        datasets.load_dataset("none", two_domains, 0)


def test_an_image_of_absurd_size_is_refused_before_it_is_decoded(two_domains, monkeypatch):
    monkeypatch.setattr(folders, "MAX_PIXELS", 24 * 24 - 1)
    with pytest.raises(InputError, match="24 x 24 pixels are too many"):
        datasets.load_dataset("pets", two_domains, 0)
