"""Streams of encoded images: order, shares, resuming, damage."""

import io
import tarfile

import jax
import numpy as np
import pytest
from PIL import Image

from siman_jax.configs import imagenet
from siman_jax.data import load_dataset
from siman_jax.data.pipeline import Share, evaluation_batches, read_ahead, training_batches
from siman_jax.data.stream import EvaluationStream
from siman_jax.devices.mesh import make_mesh
from siman_jax.devices.preemption import StopSignals
from siman_jax.errors import UsageError
from siman_jax.runs.log import read_rows
from siman_jax.runs.stored_run import load_run
from siman_jax.runs.train import train
from siman_jax.stop import Preempted

ALONE = Share(0, 1)


def jpeg(rng, height=40, width=56):
    """Encode a smooth random picture."""
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    file = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """22 training images and 7 test images in two classes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 11), ("val", 4)):
        for name in ("cat", "dog"):
            target = root / split / name
            target.mkdir(parents=True)
            for index in range(count):
                (target / f"{index:02}.jpg").write_bytes(jpeg(rng))
    (root / "val" / "dog" / "03.jpg").unlink()
    return root


@pytest.fixture
def config(folder):
    """The ImageNet config for that folder, with a small network."""
    config = imagenet.get_config()
    config.batch_size = 4
    config.eval_batch_size = 4
    config.epochs = 2
    config.model.name = "cifar.resnet20_1w1a"
    config.model.width = 4
    config.data.source = "image_folder"
    config.data.root = str(folder)
    config.data.test_split = "val"
    config.data.num_classes = 0
    config.data.image_size = 16
    config.data.shorter_side = 20
    config.data.workers = 0
    return config


def training(records, config, share, step):
    """The batches that a run reads, from a step on."""
    return training_batches(
        records,
        config.data,
        share,
        step,
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
    )


def take(batches, count):
    return [batches[index] for index in range(count)]


def test_an_interrupted_epoch_shows_each_example_once(config):
    config.batch_size = 2  # 22 examples: 11 whole batches
    records = load_dataset(config.data).train
    before = take(training(records, config, ALONE, 0), 4)
    after = take(training(records, config, ALONE, 4), 7)
    seen = np.concatenate([batch.indices for batch in before + after])
    assert sorted(seen) == list(range(22))
    whole = take(training(records, config, ALONE, 0), 22)
    for one, other in zip(before + after, whole[:11], strict=True):
        np.testing.assert_array_equal(one.images, other.images)
    second = np.concatenate([batch.indices for batch in whole[11:]])
    assert sorted(second) == list(range(22))
    assert seen.tolist() != second.tolist()


def test_an_epoch_is_whole_batches_of_a_permutation(config):
    records = load_dataset(config.data).train
    batches = take(training(records, config, ALONE, 0), 10)  # two epochs of five
    for epoch in (batches[:5], batches[5:]):
        assert len({int(i) for batch in epoch for i in batch.indices}) == 20
    for batch in batches:
        np.testing.assert_array_equal(batch.labels, [records.labels[i] for i in batch.indices])
    crops = {}
    for epoch, batch in enumerate(batches):
        for index, image in zip(batch.indices.tolist(), batch.images, strict=True):
            crops.setdefault(index, set()).add((epoch // 5, image.tobytes()))
    twice = [found for found in crops.values() if len(found) == 2]
    assert twice
    assert all(len({image for _, image in found}) == 2 for found in twice)  # drawn again


def test_any_number_of_processes_reads_the_same_batches(config):
    records = load_dataset(config.data).train
    whole = take(training(records, config, ALONE, 3), 4)
    for count in (2, 4):
        parts = [take(training(records, config, Share(i, count), 3), 4) for i in range(count)]
        for number, batch in enumerate(whole):
            joined = [
                np.concatenate(field) for field in zip(*(p[number][:3] for p in parts), strict=True)
            ]
            for found, expected in zip(joined, batch[:3], strict=True):
                np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Grain's warnings about processes that are forked or ended
def test_worker_processes_read_what_threads_read(config):
    records = load_dataset(config.data).train
    results = []
    for workers in (0, 2):
        stream = iter(read_ahead(training(records, config, ALONE, 2), workers))
        results.append([next(stream) for _ in range(6)])
        stream.close()
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one.indices, other.indices)
        np.testing.assert_array_equal(one.images, other.images)


def test_evaluation_shows_every_example_once_and_fills_up(config):
    records = load_dataset(config.data).test
    halves = [take(evaluation_batches(records, config.data, Share(i, 2), 4), 2) for i in (0, 1)]
    indices = [int(i) for n in range(2) for half in halves for i in half[n].indices]
    labels = [int(i) for n in range(2) for half in halves for i in half[n].labels]
    assert indices == list(range(8))
    assert labels == [0, 0, 0, 0, 1, 1, 1, -1]
    stream = EvaluationStream(records, make_mesh(2), config.data, 4)
    for _ in range(2):  # can be iterated again
        found = [batch.labels.tolist() for batch in stream]
        assert found == [[0, 0, 0, 0], [1, 1, 1, -1]]


def damage(root, source):
    """A copy of the folder with two files cut short, one of them in the test split."""
    for path in source.rglob("*.jpg"):
        target = root / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    for name in ("train/cat/03.jpg", "val/dog/01.jpg"):
        (root / name).write_bytes((root / name).read_bytes()[:200])


@pytest.mark.slow
def test_damaged_images_end_the_run_or_are_left_out_counted_and_logged(
    config, folder, tmp_path, caplog
):
    """The limit holds for each epoch; training before a failed evaluation is kept."""
    damage(tmp_path / "images", folder)
    config.data.root = str(tmp_path / "images")
    config.batch_size = 2
    mesh = make_mesh(2)
    with pytest.raises(UsageError, match="1 training images of this epoch could not be decoded"):
        train(config, tmp_path / "run", mesh)
    assert "left out a damaged image: " in caplog.text
    assert "train/cat/03.jpg" in caplog.text

    whole = (folder / "train" / "cat" / "03.jpg").read_bytes()
    (tmp_path / "images" / "train" / "cat" / "03.jpg").write_bytes(whole)
    with pytest.raises(UsageError, match="1 test images of this epoch could not be decoded"):
        train(config, tmp_path / "run", mesh)
    assert "val/dog/01.jpg" in caplog.text
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["11"]
    assert read_rows(tmp_path / "run") == []

    damage(tmp_path / "images", folder)
    config.data.damaged_limit = 1
    train(config, tmp_path / "run", mesh)  # evaluates, then trains the second epoch
    rows = read_rows(tmp_path / "run")
    assert [row["step"] for row in rows] == [11, 22]
    # Six test images can be decoded, so accuracies are multiples of a sixth.
    assert all(round(row["test_top1"] * 6 / 100, 6).is_integer() for row in rows)


def test_a_file_that_vanished_is_damaged(config, folder, tmp_path):
    damage(tmp_path, folder)
    config.data.root = str(tmp_path)
    records = load_dataset(config.data).test
    (tmp_path / "val" / "cat" / "00.jpg").unlink()
    first = evaluation_batches(records, config.data, ALONE, 4)[0]
    assert first.labels.tolist() == [-1, 0, 0, 0]
    assert "No such file" in first.damage[0]
    assert "00.jpg" in first.damage[0]


@pytest.mark.slow
def test_a_streamed_run_resumes_in_the_middle_of_an_epoch_bit_for_bit(
    config, tmp_path, monkeypatch
):
    mesh = make_mesh(2)
    config.data.update(color_jitter=0.4, lighting=0.1, mixup=0.2)
    train(config, tmp_path / "whole", mesh)
    with monkeypatch.context() as patch:
        patch.setattr(StopSignals, "should_stop", lambda self, step: step == 7)
        with pytest.raises(Preempted):
            train(config, tmp_path / "stopped", mesh)
    train(config, tmp_path / "stopped", mesh)
    expected, found = (
        load_run(config, tmp_path / name, mesh).progress.state for name in ("whole", "stopped")
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    whole, stopped = (read_rows(tmp_path / name) for name in ("whole", "stopped"))
    for row in (*whole, *stopped):
        del row["images_per_second"]
    assert whole == stopped
    assert [row["step"] for row in whole] == [5, 10]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.workers", -1, "workers is -1; it must be at least 0"),
        ("data.min_area", 2.0, "min_area is 2.0 and"),
        ("data.test_split", "valid", "no folder .*valid; expected ROOT/train/CLASS"),
        ("data.source", "digits", "are in memory; set --config.data.resident=True"),
        ("data.image_size", 24, "at most --config.data.shorter_side, 20"),
        ("seed", -1, "seed is -1; it must be from 0"),
        ("batch_size", 100, "has only 22 examples"),
        ("batch_size", 5, "does not divide evenly among 2 devices"),
        ("accumulation_steps", 3, "cannot be divided into so many equal parts"),
        ("batch_norm_devices", 3, "2 devices cannot be divided into groups"),
    ],
)
def test_bad_settings_of_streams_and_devices(config, tmp_path, field, value, message):
    config.data.num_classes = 10 if value == "digits" else 0
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UsageError, match=message):
        train(config, tmp_path / "new", make_mesh(2))
    assert not (tmp_path / "new").exists()


def add(archive, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # raised inside TensorFlow
def test_imagenet_through_tfds(config, tmp_path, monkeypatch):
    """Uses the real builder on archives like the published ones; reads without TensorFlow.

    Four processes read two files; records are read by number, so shards need not match hosts.
    """
    pytest.importorskip("tensorflow")
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(0)
    manual = tmp_path / "manual"
    manual.mkdir()
    stored = {}
    with tarfile.open(manual / "ILSVRC2012_img_train.tar", "w") as outer:
        for synset in ("n01440764", "n01443537"):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive:
                for index in range(4):
                    stored[f"{synset}_{index}.JPEG"] = jpeg(rng)
                    add(archive, f"{synset}_{index}.JPEG", stored[f"{synset}_{index}.JPEG"])
            add(outer, f"{synset}.tar", inner.getvalue())
    with tarfile.open(manual / "ILSVRC2012_img_val.tar", "w") as archive:
        for index in range(1, 4):
            add(archive, f"ILSVRC2012_val_{index:08}.JPEG", jpeg(rng))
    builder = tfds.builder("imagenet2012", data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=manual, num_shards=2)
    )

    config.data.source = "tfds"
    config.data.tfds_dir = str(tmp_path)
    config.data.test_split = "validation"
    config.data.num_classes = 1000
    dataset = load_dataset(config.data)
    assert len(dataset.classes) == 1000
    assert len(dataset.test) == 3
    for index in range(8):
        data, label, name = dataset.train[index]
        file_name = name.split(", ")[1]
        assert data == stored[file_name]
        assert label == dataset.classes.index(file_name.split("_")[0])
    parts = [training(dataset.train, config, Share(i, 4), 0)[0] for i in range(4)]
    indices = np.concatenate([part.indices for part in parts])
    assert len(set(indices.tolist())) == 4
    config.data.test_split = "valid"
    with pytest.raises(UsageError, match=r"no split 'valid', only \['train', 'validation'\]"):
        load_dataset(config.data)
