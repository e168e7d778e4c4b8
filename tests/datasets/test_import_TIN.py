"""Tiny-ImageNet from a folder and a zip that the tests write in the published layout."""

import io
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import import_TIN
from fedmerge.datasets.tiny_imagenet import load_tiny_imagenet
from fedmerge.errors import InputError

WNIDS = ["n02", "n01", "n03"]  # the published file is not in alphabetical order either


def jpeg(colour, mode="RGB", size=(64, 64)):
    file = io.BytesIO()
    Image.fromarray(np.full((*size[::-1], 3), colour, dtype="u1")).convert(mode).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture
def tiny(tmp_path):
    """tmp_path/tiny-imagenet-200: class i has i + 1 training images and one validation image, of grey level 60 * i."""
    root = tmp_path / "tiny-imagenet-200"
    for i, wnid in enumerate(sorted(WNIDS)):
        folder = root / "train" / wnid / "images"
        folder.mkdir(parents=True)
        (folder.parent / f"{wnid}_boxes.txt").write_text("not an image")
        (folder / ".DS_Store").write_text("not an image")
        for j in range(i + 1):
            (folder / f"{wnid}_{j}.JPEG").write_bytes(jpeg(60 * i + j, "L" if j == 1 else "RGB"))
    (root / "val" / "images").mkdir(parents=True)
    lines = []
    for name, i in (("val_0.JPEG", 2), ("val_1.JPEG", 0), ("val_2.JPEG", 1)):
        (root / "val" / "images" / name).write_bytes(jpeg(60 * i))
        lines.append(f"{name}\t{sorted(WNIDS)[i]}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines) + "\n")
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (root / "words.txt").write_text("n01\tfirst\n")
    return tmp_path


def zipped(tiny):
    with zipfile.ZipFile(tiny / "tiny-imagenet-200.zip", "w") as archive:
        for path in sorted((tiny / "tiny-imagenet-200").rglob("*")):
            archive.write(path, path.relative_to(tiny))
    shutil.rmtree(tiny / "tiny-imagenet-200")
    return tiny / "tiny-imagenet-200.zip"


@pytest.mark.parametrize("source", ["folder", "zip", "zip found without its suffix"])
def test_caches_hold_every_image_with_its_label(tiny, source):
    path = tiny / "tiny-imagenet-200" if source == "folder" else zipped(tiny)
    import_TIN.write_caches(path.with_suffix("") if source.startswith("zip found") else path, tiny)
    train, test, n_classes = load_tiny_imagenet(tiny, seed=0)
    assert n_classes == 3
    assert train.labels.tolist() == [0, 1, 1, 2, 2, 2]
    assert test.labels.tolist() == [2, 0, 1]  # as val_annotations.txt says
    assert train.images.dtype == torch.uint8
    assert train.images.shape == (6, 3, 64, 64)
    for images in (train, test):
        colours = images.images.float().mean((1, 2, 3))
        assert ((colours - 60 * images.labels).abs() < 5).all()


def test_the_program_writes_the_files_the_loader_wants(tiny, program):
    done = program("--data_root", tiny, script="import_TIN.py")
    assert done.returncode == 0, done.stderr
    assert "tinyimagenet_train_cache.pt: 6 images of 3 classes" in done.stdout
    cache = torch.load(tiny / "tinyimagenet_val_cache.pt", weights_only=True)
    assert set(cache) == {"images", "labels", "wnids"}
    assert cache["wnids"] == sorted(WNIDS)


def spoil(root, how):
    image = root / "train" / "n03" / "images" / "n03_1.JPEG"
    if how == "broken image":
        image.write_bytes(image.read_bytes()[:200])
    elif how == "not an image":
        image.write_text("hello")
    elif how == "other size":
        image.write_bytes(jpeg(3, size=(64, 32)))
    elif how == "missing validation image":
        (root / "val" / "images" / "val_1.JPEG").unlink()
    elif how == "unknown class":
        (root / "train" / "n03").rename(root / "train" / "n99")
    elif how == "bad annotation":
        (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn77\t0\t0\t1\t1\n")
    elif how == "garbled class list":
        (root / "wnids.txt").write_bytes(b"\xff\xfe\xff")
    elif how == "no annotations":
        (root / "val" / "val_annotations.txt").unlink()
    elif how == "no training images":
        shutil.rmtree(root / "train")


@pytest.mark.parametrize("as_zip", [False, True])
@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("broken image", "n03_1.JPEG"),
        ("not an image", "n03_1.JPEG"),
        ("other size", "n03_1.JPEG is 64x32|n03_1.JPEG cannot be read .is 64x32"),
        ("missing validation image", "val_1.JPEG is missing"),
        ("unknown class", "train/n99"),
        ("bad annotation", "line 1 of val/val_annotations.txt"),
        ("garbled class list", "wnids.txt cannot be read"),
        ("no annotations", "val/val_annotations.txt"),
        ("no training images", "no training images"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(tiny, how, named, as_zip):
    spoil(tiny / "tiny-imagenet-200", how)
    source = zipped(tiny) if as_zip else tiny / "tiny-imagenet-200"
    with pytest.raises(InputError, match=named) as caught:
        import_TIN.write_caches(source, tiny)
    assert "\n" not in str(caught.value)
    assert not list(tiny.glob("*.pt"))


def test_a_member_that_unpacks_to_much_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(import_TIN, "MAX_BYTES", 10)
    with pytest.raises(InputError, match="unpacks to more than 10 bytes"):
        import_TIN.write_caches(zipped(tiny), tiny)


def test_a_zip_with_any_flipped_byte_in_its_directory_is_refused_in_one_line(tiny):
    path = zipped(tiny)
    content = path.read_bytes()
    begin = content.index(b"PK\x01\x02")
    for place in [*range(begin, begin + 46), *range(len(content) - 22, len(content))]:
        for bit in (0x01, 0x80):
            path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            assert "\n" not in refusal(path)


def refusal(path):
    """Why the zip is refused, "" if it is not."""
    try:
        import_TIN.list_images(import_TIN.open_source(path))
    except InputError as error:
        return str(error)
    return ""


def test_no_source_and_no_zip_are_said(tmp_path, program):
    done = program("--data_root", tmp_path, script="import_TIN.py")
    assert done.returncode != 0
    assert "tiny-imagenet-200.zip" in done.stderr
    (tmp_path / "x.zip").write_text("no")
    with pytest.raises(InputError, match="not a zip"):
        import_TIN.write_caches(tmp_path / "x.zip", tmp_path)


def test_a_bad_cache_is_refused(tmp_path):
    for part in ("train", "val"):
        torch.save(
            {"images": torch.zeros(2, 3, 64, 64), "labels": torch.zeros(2), "wnids": []},
            tmp_path / f"tinyimagenet_{part}_cache.pt",
        )
    with pytest.raises(InputError, match="not a cache of import_TIN"):
        load_tiny_imagenet(tmp_path, 0)
