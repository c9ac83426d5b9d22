"""Data sources, augmentation and batches; errors name bad folders and images."""

import importlib.util
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from siman_jax.configs import cifar10, digits, image_folder
from siman_jax.data import decode, load_dataset, memory
from siman_jax.data.augment import augment, random_crop, random_flip
from siman_jax.data.dataset import Split
from siman_jax.data.resident import epoch_order, padded_batches, take_batch, upload
from siman_jax.devices.mesh import make_mesh
from siman_jax.errors import UsageError
from siman_jax.models.normalization import normalize

COLOURS = {"blue": (0, 0, 255), "red": (255, 0, 0)}


@pytest.fixture
def folder(tmp_path):
    """Three training images and one test image of each class, 8x8."""
    for split, count in (("train", 3), ("test", 1)):
        for name, colour in COLOURS.items():
            target = tmp_path / "images" / split / name
            target.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (8, 8), colour).save(target / f"{index}.png")
    return tmp_path / "images"


@pytest.fixture
def config(folder, tmp_path):
    config = image_folder.get_config().data
    config.root = str(folder)
    config.cache_dir = str(tmp_path / "cache")
    config.image_size = 8
    return config


def test_digits_are_always_split_the_same_way():
    first, second = (load_dataset(digits.get_config().data) for _ in range(2))
    assert first.train.images.shape == (1437, 8, 8, 1)
    assert first.test.images.shape == (360, 8, 8, 1)
    assert first.classes == tuple("0123456789")
    np.testing.assert_array_equal(first.test.images, second.test.images)
    assert np.bincount(first.test.labels).min() >= 35


def test_addresses_are_refused(config):
    for name, address in {"cache_dir": "s3://bucket/cache", "root": "gs://bucket/images"}.items():
        setattr(config, name, address)
        with pytest.raises(UsageError, match=f"--config.data.{name}={address} is an address"):
            load_dataset(config)


def test_image_folder(config):
    dataset = load_dataset(config)
    assert dataset.classes == ("blue", "red")
    np.testing.assert_array_equal(dataset.train.labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(dataset.train.images[4], np.full((8, 8, 3), (255, 0, 0)))
    assert dataset.test.images.dtype == np.uint8


def test_hidden_names_and_folders_within_a_class(config, folder, caplog):
    """Hidden names are skipped, files in subfolders are found, other files are counted."""
    red = folder / "train" / "red"
    for hidden in (folder / "train" / ".ipynb_checkpoints", red / ".thumbnails"):
        hidden.mkdir()
        shutil.copy(red / "0.png", hidden / "0.png")
    (red / "._000.png").write_bytes(b"no image")
    (red / "notes.txt").touch()
    (red / "page.TXT").touch()
    (red / "more" / "deep").mkdir(parents=True)
    (red / "2.png").rename(red / "more" / "deep" / "2.png")
    with caplog.at_level("WARNING"):
        dataset = load_dataset(config)
    assert dataset.classes == ("blue", "red")
    np.testing.assert_array_equal(dataset.train.labels, [0, 0, 0, 1, 1, 1])
    assert f"left out of {folder / 'train'}" in caplog.text
    assert "2 .txt" in caplog.text
    assert "3 hidden" in caplog.text


@pytest.mark.parametrize("name", ["0.JPG", "0.jpeg", "0.bmp", "0.webp", "0.gif", "0.tif", "0.ppm"])
def test_every_format_is_read(config, folder, name):
    (folder / "train" / "red" / "0.png").unlink()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(folder / "train" / "red" / name)
    images = load_dataset(config).train.images
    assert images.shape == (6, 8, 8, 3)
    assert np.abs(images[3].astype(int) - (255, 0, 0)).max() <= 1


def test_what_is_left_out_is_counted_by_reason(config, folder, caplog):
    """A folder may be named like an image, and links are followed."""
    red, blue = folder / "train" / "red", folder / "train" / "blue"
    (red / "gone.png").symlink_to(folder / "nowhere.png")
    (red / "more").symlink_to(folder / "test" / "red")
    (red / "again").symlink_to(red)
    (red / "itself.png").symlink_to(red / "itself.png")
    (red / "1.png").rename(red / "kept.tmp")
    os.mkfifo(red / "pipe.png")
    (blue / "inside.png").mkdir()
    (blue / "1.png").rename(blue / "inside.png" / "1.png")
    (folder / "train" / ".DS_Store").touch()
    (folder / "train" / "loose.png").touch()
    dataset = load_dataset(config)
    np.testing.assert_array_equal(dataset.train.labels, [0, 0, 0, 1, 1, 1])
    (line,) = (text for text in caplog.messages if "left out of" in text)
    assert set(line.partition(": ")[2].partition(";")[0].split(", ")) == {
        "2 with a broken link",
        "1 linked to a folder that contains it",
        "1 neither file nor folder",
        "1 .tmp",
        "1 hidden",
        "1 beside the class folders",
    }


def test_a_flat_split_is_recognised(config, folder):
    for name in ("red", "blue"):
        (folder / "test" / name / "0.png").rename(folder / "test" / f"ILSVRC2012_val_{name}.png")
        (folder / "test" / name).rmdir()
    with pytest.raises(UsageError, match=r"test is flat: it holds 2 images .*/test/CLASS/ILSVRC"):
        load_dataset(config)
    config.test_split, config.train_split = "train", "test"
    with pytest.raises(UsageError, match="test is flat"):
        load_dataset(config)


# The cache of decoded images


@pytest.fixture
def decoded(monkeypatch):
    """A list that gets an entry for each image that is decoded."""
    sizes = []
    read = decode.whole_image

    def record(data, **options):
        sizes.append(len(data))
        return read(data, **options)

    monkeypatch.setattr(decode, "whole_image", record)
    return sizes


def cached(config):
    return sorted(path.name for path in Path(config.cache_dir).iterdir())


def test_image_folder_is_decoded_once(config, decoded):
    first = load_dataset(config)
    assert len(decoded) == 8
    for split in ("train", "test"):
        found, expected = getattr(load_dataset(config), split), getattr(first, split)
        np.testing.assert_array_equal(found.images, expected.images)
        np.testing.assert_array_equal(found.labels, expected.labels)
    assert len(decoded) == 8


def test_a_damaged_cache_is_made_again(config, decoded):
    first = load_dataset(config)
    (cache,) = Path(config.cache_dir).iterdir()
    whole = cache.read_bytes()
    position = whole.index(first.train.images.tobytes()) + 99
    flipped = whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]
    for damaged in (b"", whole[:100], flipped):
        cache.write_bytes(damaged)
        np.testing.assert_array_equal(load_dataset(config).train.images, first.train.images)
        assert cache.read_bytes() == whole
    split = {"train_images": first.test.images, "train_labels": first.test.labels}
    np.savez(cache, **split, test_images=first.test.images, test_labels=first.test.labels)
    assert len(load_dataset(config).train) == 6


def test_the_cache_serves_no_other_pixels_of_the_same_name_size_and_time(config, folder, tmp_path):
    """Also when a file changes and keeps them, and for another folder."""
    path = folder / "train" / "red" / "0.bmp"
    (folder / "train" / "red" / "0.png").unlink()
    other = tmp_path / "other"
    for root, level in ((folder, 1), (other, 2), (folder, 3)):
        if not root.exists():
            shutil.copytree(folder, root)
        file = root / path.relative_to(folder)
        Image.new("RGB", (8, 8), (level,) * 3).save(file)
        os.utime(file, ns=(1, 1))
        config.root = str(root)
        assert (load_dataset(config).train.images[3] == level).all()


def test_the_cache_serves_no_pixels_by_other_rules(config, folder):
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(folder / "train" / "red" / "0.png")
    for background in (0, 255, 0):
        config.background = background
        assert (load_dataset(config).train.images[3] == background).all()


def test_labels_are_not_served_of_other_classes(config, folder):
    load_dataset(config)
    for split in ("train", "test"):
        (folder / split / "blue").rename(folder / split / "zebra")
    dataset = load_dataset(config)
    assert dataset.classes == ("red", "zebra")
    assert (dataset.train.images[dataset.train.labels == 0] == (255, 0, 0)).all()


def test_files_that_change_while_they_are_decoded_are_cached_as_what_they_were(
    config, folder, monkeypatch
):
    file = folder / "train" / "red" / "0.png"
    before = file.read_bytes()
    left, digest_of = [sum(path.is_file() for path in folder.rglob("*"))], memory.digest_of_example

    def change_after_the_last(example):
        digest = digest_of(example)
        left[0] -= 1
        if left[0] == 0:  # all are read for the first time; decoding reads them again
            Image.new("RGB", (8, 8), (7, 7, 7)).save(file)
        return digest

    with monkeypatch.context() as patch:
        patch.setattr(memory, "digest_of_example", change_after_the_last)
        assert (load_dataset(config).train.images[3] == 7).all()
    file.write_bytes(before)
    assert (load_dataset(config).train.images[3] == (255, 0, 0)).all()


def test_old_entries_of_the_cache_go(config, folder, tmp_path):
    """Entries of changed images and entries not used for a month are removed, and no others."""
    for level in range(3):
        Image.new("RGB", (8, 8), (level,) * 3).save(folder / "train" / "red" / "0.png")
        load_dataset(config)
        (entry,) = cached(config)
    cache = tmp_path / "cache"
    own = [f"{'a' * 32}.npz", f"{'a' * 32}-{'b' * 32}.npz", f"{'a' * 32}-{'b' * 32}.{'c' * 32}.npz"]
    for name in (*own, "mine.npz", f"{'d' * 32}.npz"):
        (cache / name).touch()
    for name in (*own, "mine.npz", entry):
        os.utime(cache / name, (0, 0))
    load_dataset(config)  # marks it as used
    config.resize = True
    load_dataset(config)  # writes a new entry
    assert len(cached(config)) == 4
    assert {"mine.npz", f"{'d' * 32}.npz", entry} < set(cached(config))


def test_without_a_folder_nothing_is_cached(config, decoded):
    config.cache_dir = ""
    for _ in range(2):
        load_dataset(config)
    assert len(decoded) == 16


def test_grey_images_become_colour_and_the_other_way(config, folder):
    for path in folder.glob("*/red/*.png"):
        Image.new("L", (8, 8), 77).save(path)
    assert (load_dataset(config).train.images[3] == 77).all()
    config.update(channels=1, mean=(0.5,), std=(0.25,))
    assert load_dataset(config).train.images.shape == (6, 8, 8, 1)


def test_missing_folder(config):
    config.root = "nowhere"
    with pytest.raises(UsageError, match=r"no folder nowhere.train.*--config.data.root"):
        load_dataset(config)


def test_empty_folder(config, folder):
    (folder / "train" / "red" / "0.png").parent.joinpath("notes.txt").touch()
    for path in (folder / "train" / "red").glob("*.png"):
        path.unlink()
    with pytest.raises(UsageError, match=r"train/red holds no images"):
        load_dataset(config)


def test_folder_without_classes(config, tmp_path):
    (tmp_path / "bare" / "train").mkdir(parents=True)
    config.root = str(tmp_path / "bare")
    with pytest.raises(UsageError, match="holds no class folders"):
        load_dataset(config)


def test_splits_of_different_classes(config, folder):
    (folder / "test" / "green").mkdir()
    with pytest.raises(UsageError, match=r"different class folders: \['green'\]"):
        load_dataset(config)


def test_corrupt_images_are_named(config, folder):
    whole = (folder / "train" / "red" / "1.png").read_bytes()
    (folder / "train" / "red" / "1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "train" / "blue" / "2.png").write_bytes(b"not an image")
    with pytest.raises(UsageError, match=r"2 of 6 images(.|\n)*blue/2.png(.|\n)*red/1.png"):
        load_dataset(config)


def test_wrong_size_is_refused_or_resized(config, folder):
    Image.new("RGB", (10, 6), (1, 2, 3)).save(folder / "test" / "red" / "0.png")
    with pytest.raises(UsageError, match=r"red/0.png: is 10x6 pixels, expected 8x8"):
        load_dataset(config)
    config.resize = True
    resized = load_dataset(config).test.images[1]
    np.testing.assert_array_equal(resized, np.full((8, 8, 3), (1, 2, 3)))


def test_wrong_number_of_classes(config):
    config.num_classes = 3
    with pytest.raises(UsageError, match=r"has 2 classes, but --config.data.num_classes is 3"):
        load_dataset(config)


def test_unknown_source(config):
    config.source = "image_folders"
    with pytest.raises(UsageError, match="did you mean 'image_folder'"):
        load_dataset(config)


def write_cifar10_archive(path, per_file):
    """Write CIFAR-10's binary format: a byte with the label, then 3 x 1024 bytes of colours."""
    rng = np.random.default_rng(0)
    path.mkdir(parents=True)
    records = {}
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        labels = rng.integers(0, 10, (per_file, 1), np.uint8)
        pixels = rng.integers(0, 256, (per_file, 3072), np.uint8)
        (path / name).write_bytes(np.concatenate([labels, pixels], 1).tobytes())
        records[name] = labels, pixels
    (path / "batches.meta.txt").write_text("".join(f"class {i}\n" for i in range(10)))
    return records


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # raised inside TensorFlow
def test_tfds_writes_and_reads_cifar10(tmp_path, monkeypatch):
    """Uses the real builder, writer and reader, on files in CIFAR-10's format."""
    pytest.importorskip("tensorflow")
    import tensorflow_datasets as tfds

    records = write_cifar10_archive(tmp_path / "archive" / "cifar-10-batches-bin", per_file=7)
    monkeypatch.setattr(
        tfds.download.DownloadManager, "download_and_extract", lambda *_: tmp_path / "archive"
    )
    config = cifar10.get_config().data
    config.tfds_dir = str(tmp_path / "prepared")
    dataset = load_dataset(config)
    assert dataset.classes[:2] == ("class 0", "class 1")
    assert len(dataset.train) == 35

    written = zip(*records["test_batch.bin"], strict=True)
    expected = {(int(label[0]), row.tobytes()) for label, row in written}
    found = {
        (int(label), image.transpose(2, 0, 1).tobytes())
        for image, label in zip(dataset.test.images, dataset.test.labels, strict=True)
    }
    assert found == expected


def test_tfds_says_how_to_prepare(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorflow" else find(name)
    )
    config = cifar10.get_config().data
    config.tfds_dir = str(tmp_path)
    with pytest.raises(UsageError, match=r"pip install 'siman-jax\[prepare\]'"):
        load_dataset(config)


def test_crops_are_windows_of_the_padded_image():
    images = jnp.arange(1, 1 + 64 * 5 * 5, dtype=jnp.int32).reshape(64, 5, 5, 1)
    crops = random_crop(jax.random.key(0), images, 2)
    assert crops.shape == images.shape
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    offsets = set()
    for image, crop in zip(padded, crops, strict=True):
        windows = {
            (y, x): image[y : y + 5, x : x + 5].tobytes() for y in range(5) for x in range(5)
        }
        (where,) = (key for key, value in windows.items() if value == np.asarray(crop).tobytes())
        offsets.add(where)
    assert len(offsets) > 15


def test_half_of_the_images_are_mirrored():
    images = jax.random.normal(jax.random.key(0), (400, 2, 3, 1))
    flipped = random_flip(jax.random.key(1), images)
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (flipped == images).all((1, 2, 3))).all()
    assert 150 < mirrored.sum() < 250


def test_augmentation_can_be_switched_off():
    images = jax.random.bits(jax.random.key(0), (3, 4, 4, 1), "uint8")
    np.testing.assert_array_equal(augment(jax.random.key(1), images, 0, False), images)


def test_normalize():
    images = jnp.asarray([[[[0, 128, 255]]]], jnp.uint8)
    expected = (np.array([0, 128 / 255, 1]) - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    found = normalize(images, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-5)


def test_an_epoch_takes_each_example_at_most_once():
    split = Split(np.zeros((10, 1, 1, 1), np.uint8), np.arange(10, dtype=np.int32))
    data, key = upload(split, make_mesh(1)), jax.random.key(0)
    order = epoch_order(key, 0, 10)
    seen = np.concatenate([take_batch(data, order, i, 3).labels for i in range(3)])
    assert len(set(seen.tolist())) == 9
    assert not np.array_equal(order, epoch_order(key, 1, 10))
    np.testing.assert_array_equal(order, epoch_order(key, 0, 10))


def test_padded_batches_mark_what_does_not_count():
    split = Split(np.ones((5, 2, 2, 1), np.uint8), np.arange(5, dtype=np.int32))
    first, second = padded_batches(split, make_mesh(3), 3)
    np.testing.assert_array_equal(first.labels, [0, 1, 2])
    np.testing.assert_array_equal(second.labels, [3, 4, -1])
    assert second.images.shape == (3, 2, 2, 1)
