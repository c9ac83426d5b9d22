"""A user's own data: arrays passed in Python, and sources outside the package."""

import json
import subprocess
import sys

import numpy as np
import pytest
from small_runs import small_config

import siman_jax
from siman_jax.data import class_names, load_dataset
from siman_jax.data.arrays import config_for, dataset_of
from siman_jax.data.defaults import image_files
from siman_jax.devices.mesh import make_mesh
from siman_jax.errors import UsageError
from siman_jax.runs.train import evaluate_run, train
from siman_jax.runs.trained_on import check_classes, read_trained_on
from siman_jax.runs.workdir import read_config
from tests.own_data import stripes


def config_of_stripes():
    config = small_config()
    config.epochs = 1
    config.model.name = "tests.own_networks:plain"  # compiles fast
    config.data.source = "tests.own_data:stripes"
    config.data.num_classes = 2
    config.data.crop_padding = 0
    config.data.flip = False
    return config


def arrays():
    data = stripes(small_config().data)
    return tuple((split.images, split.labels) for split in (data.train, data.test))


def test_a_source_outside_the_package_is_trained_on_and_evaluated(tmp_path):
    config = config_of_stripes()
    results = train(config, tmp_path / "run", make_mesh(1))
    assert read_trained_on(tmp_path / "run").classes == ("horizontal", "vertical")
    assert class_names(config.data) == ("horizontal", "vertical")
    assert evaluate_run(config, tmp_path / "run", make_mesh(1)) == results


def test_arrays_are_trained_on_like_the_same_data_from_a_source(tmp_path):
    data = arrays()
    config = config_for(config_of_stripes(), dataset_of(*data))
    found = siman_jax.train(config_of_stripes(), tmp_path / "arrays", data=data, devices=1)
    config.data.source = "tests.own_data:stripes"
    assert found == train(config, tmp_path / "source", make_mesh(1))
    stored = read_config(tmp_path / "arrays").data
    images = data[0][0] / 255
    assert (stored.source, stored.num_classes, stored.image_size) == ("arrays", 2, 8)
    np.testing.assert_allclose(stored.mean, [images.mean()], atol=1e-4)
    np.testing.assert_allclose(stored.std, [images.std()], atol=1e-4)


@pytest.mark.parametrize("source", ["bytes_as_labels", "unsigned_labels"])
def test_labels_of_any_integer_dtype_are_int32(source):
    """Evaluation pads the last batch with -1, which would be a class in an unsigned dtype."""
    config = config_of_stripes()
    expected = load_dataset(config.data)
    config.data.source = f"tests.own_data:{source}"
    dataset = load_dataset(config.data)
    for own, other in ((dataset.train, expected.train), (dataset.test, expected.test)):
        assert own.labels.dtype == np.int32
        np.testing.assert_array_equal(own.labels, other.labels)


def test_a_run_on_arrays_goes_on_and_asks_for_them(tmp_path):
    config = config_of_stripes()
    first = siman_jax.train(
        config, tmp_path / "run", data=arrays(), classes=["lying", "standing"], devices=1
    )
    again = siman_jax.train(
        config, tmp_path / "run", data=arrays(), classes=["lying", "standing"], devices=1
    )
    assert first == again
    assert read_trained_on(tmp_path / "run").classes == ("lying", "standing")
    with pytest.raises(UsageError, match=r"pass them again, with\s+siman_jax\.train"):
        load_dataset(read_config(tmp_path / "run").data)
    with pytest.raises(UsageError, match="other classes"):
        siman_jax.train(config, tmp_path / "run", data=arrays(), devices=1)


def test_the_same_classes_in_another_order_are_other_classes(tmp_path):
    """Labels are places in this order."""
    facts = {"classes": ["lying", "standing"], "train_examples": 8}
    (tmp_path / "data.json").write_text(json.dumps(facts))
    check_classes(("lying", "standing"), tmp_path)
    with pytest.raises(UsageError, match=r"other classes .*\(in another order\)"):
        check_classes(("standing", "lying"), tmp_path)


IMAGES, LABELS = np.zeros((4, 8, 8, 3), np.uint8), np.arange(4)


@pytest.mark.parametrize(
    ("train_part", "test_part", "classes", "message"),
    [
        ((IMAGES / 255, LABELS), (IMAGES, LABELS), None, "train images are float64"),
        ((IMAGES[:, :4], LABELS), (IMAGES, LABELS), None, r"\(4, 4, 8, 3\); expected uint8"),
        ((np.moveaxis(IMAGES, 3, 1), LABELS), (IMAGES, LABELS), None, "expected uint8"),
        ((IMAGES[..., :2], LABELS), (IMAGES, LABELS), None, "1 or 3 channels"),
        ((IMAGES, LABELS[:3]), (IMAGES, LABELS), None, r"int64 \(3,\) for 4 images"),
        ((IMAGES, LABELS / 2), (IMAGES, LABELS), None, "float64"),
        ((IMAGES, LABELS - 1), (IMAGES, LABELS), None, "label is -1"),
        ((IMAGES, LABELS), (IMAGES[..., :1], LABELS), None, "test images"),
        ((IMAGES, LABELS), (IMAGES, LABELS), ["a"], "but there are 1 class names"),
        ((IMAGES, LABELS), (IMAGES, LABELS), [0, 1, 2, 3], r"are \(0, 1, 2, 3\); expected texts"),
        (IMAGES, LABELS, None, r"train data are of type ndarray; expected a pair \(images,"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(train_part, test_part, classes, message):
    with pytest.raises(UsageError, match=message):
        dataset_of(train_part, test_part, classes)


def test_data_that_are_no_pair_are_refused(tmp_path):
    with pytest.raises(UsageError, match="data is not a pair"):
        siman_jax.train(config_of_stripes(), tmp_path / "run", data=(IMAGES, LABELS, IMAGES))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tests.own_data:nothing", "gave NoneType; expected a function"),
        (
            "tests.own_data:stripe",
            "has no function 'stripe'; it has: beyond, bytes_as_labels, changed, ",
        ),
        (
            "tests.own_data:no_config",
            r"no_config\(\) cannot be called with \(ConfigDict\)",
        ),
        ("tests.own_data:floats", "test images are float32; expected uint8"),
        (
            "tests.own_data:larger",
            r"test images are \(9, 9, 1\) .* config says \(8, 8, 1\)",
        ),
        ("tests.own_data:fewer", r"test labels are int32 \(99,\) for 100 images"),
        ("tests.own_data:fractions", r"test labels are float64 \(100,\) for 100 images"),
        ("tests.own_data:beyond", "test labels are from 2 to 2; expected 0 to 1, the last of 2"),
        ("tests.own_data:negative", "test labels are from -1 to -1; expected 0 to 1"),
        ("tests.other:stripes", "importing tests.other failed"),
        ("digit", "unknown data source"),
    ],
)
def test_sources_that_do_not_fit_are_refused(source, message, tmp_path):
    config = config_of_stripes()
    config.data.source = source
    with pytest.raises(UsageError, match=message):
        train(config, tmp_path / "run", make_mesh(1))
    assert not (tmp_path / "run").exists()


def config_of_encoded(source, *, resident):
    config = config_of_stripes()
    config.data = image_files()
    config.data.source = f"tests.own_data:{source}"
    config.data.num_classes, config.data.resident, config.data.workers = 2, resident, 1
    config.data.image_size, config.data.shorter_side, config.data.channels = 8, 8, 1
    config.data.mean = config.data.std = (0.5,)
    return config


@pytest.mark.parametrize("source", ["encoded", "encoded_to_train", "encoded_to_test"])
def test_encoded_images_in_one_split_or_both_are_decoded_into_memory(source):
    config = config_of_encoded(source, resident=True).data
    dataset, expected = load_dataset(config), stripes(config)
    for own, other in ((dataset.train, expected.train), (dataset.test, expected.test)):
        np.testing.assert_array_equal(own.images, other.images)
        np.testing.assert_array_equal(own.labels, other.labels)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize(("source", "label"), [("encoded_beyond", 2), ("encoded_negative", -1)])
def test_labels_of_encoded_images_are_checked_as_they_are_read(source, label, resident, tmp_path):
    config = config_of_encoded(source, resident=resident)
    with pytest.raises(UsageError, match=f"image 7 has the label {label}; expected 0 to 1"):
        train(config, tmp_path / "run", make_mesh(1))


@pytest.mark.parametrize("resident", [False, True])
def test_encoded_images_of_a_source_are_trained_on(resident, tmp_path):
    """Their labels are integers of NumPy."""
    config = config_of_encoded("encoded", resident=resident)
    results = train(config, tmp_path / "run", make_mesh(1))
    assert evaluate_run(config, tmp_path / "run", make_mesh(1)) == results


def test_importing_the_package_imports_neither_jax_nor_flax():
    program = (
        "import sys, siman_jax; dir(siman_jax)\n"
        "assert not {'jax', 'flax', 'ml_collections'} & sys.modules.keys(), sys.modules.keys()\n"
        "assert siman_jax.BinaryConv.__name__ == 'BinaryConv' and 'flax' in sys.modules\n"
        "for name in siman_jax.__all__: getattr(siman_jax, name)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match="no attribute 'binary_conv'"):
        siman_jax.binary_conv  # noqa: B018
