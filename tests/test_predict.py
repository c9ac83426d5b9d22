"""Tests of the command that classifies images: arguments, damage, output and latency."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from cli import call, run
from packed_example import packed_network
from PIL import Image

import siman_jax
from siman_jax.data.decode import evaluation_image
from siman_jax.data.image_files import list_images, read_pixels
from siman_jax.data.pixels import PixelRules
from siman_jax.errors import UsageError
from siman_jax.packed.model import PackedModel, Prediction
from siman_jax.packed.program_file import write_program
from siman_jax.predict import main as predict


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    write_program(path, packed_network())
    return path


@pytest.fixture
def folder(tmp_path):
    """Write three images of the network's size, one in a folder below."""
    rng = np.random.default_rng(0)
    for name in ("b.png", "a[0].png", "below/c.PNG"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    (tmp_path / "images" / "text.txt").write_text("no image")
    return tmp_path / "images"


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_a_folder_in_batches(model_file, folder, capsys):
    """For any batch size, each image gets the same result as alone, in the order of the names."""
    call(predict, model_file, folder, "--json", "--batch_size=2", "--top", "2")
    found = lines(capsys.readouterr().out)
    names = ["a[0].png", "b.png", "below/c.PNG"]
    assert [row["image"] for row in found] == [str(folder / name) for name in names]
    model = siman_jax.load(model_file)
    for row in found:
        pixels = np.asarray(Image.open(row["image"]))[None]
        classes, probabilities, (name,) = model.predict(pixels)
        best = row["predictions"][0]
        assert (best["class"], best["name"]) == (classes[0], name)
        order = np.sort(probabilities[0])[::-1]
        # Another batch size rounds logits of about 10 in another way, by a few 1e-6 of them, and a
        # small probability moves by as much relative to itself as its logit does.
        found_best = [p["probability"] for p in row["predictions"]]
        assert found_best == pytest.approx(order[:2], rel=1e-4)


def test_the_table(model_file, folder, capsys):
    call(predict, model_file, folder / "a[0].png", folder / "b.png")
    printed = capsys.readouterr().out
    assert "a[0].png" in printed
    assert "é" in printed
    assert "probability (%)" in printed


def test_standard_input_and_flags_first(model_file, folder):
    """Run the command as a user does."""
    data = (folder / "b.png").read_bytes()
    result = run("predict", "--json", "--top=1", model_file, "-", input=data, text=False)
    assert result.returncode == 0, result.stderr
    (row,) = lines(result.stdout.decode())
    assert row["image"] == "-"
    assert len(row["predictions"]) == 1


def test_damaged_images_are_named_and_the_others_classified(model_file, folder, capsys):
    (folder / "cut.png").write_bytes((folder / "b.png").read_bytes()[:60])
    (folder / "none.jpg").write_bytes(b"no image")
    Image.new("RGB", (9, 8)).save(folder / "large.png")
    with pytest.raises(SystemExit) as stop:
        call(predict, model_file, folder, "--json")
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert len(lines(printed.out)) == 3
    assert f"{folder / 'cut.png'}: cannot be decoded" in printed.err
    assert f"{folder / 'none.jpg'}: cannot be decoded" in printed.err
    assert "0x" not in printed.err
    assert "large.png: is 9x8 pixels, expected 8x8; --resize" in printed.err
    assert "3 of 6 images could not be classified" in printed.err
    call(predict, model_file, folder / "large.png", "--resize", "--json")
    assert len(lines(capsys.readouterr().out)) == 1


def test_a_folder_is_read_as_training_reads_it(folder, caplog):
    """All formats are found, hidden files are not, and other files are mentioned."""
    (folder / "._b.png").write_bytes(b"no image")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "d.png").touch()
    (folder / "gone.png").symlink_to(folder / "nowhere")
    (folder / "x.png").mkdir()
    names = [f"e.{kind}" for kind in ("bmp", "gif", "ppm", "tif", "webp")]
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / "x.png" / name)
    expected = ["a[0].png", "b.png", "below/c.PNG", *(f"x.png/{name}" for name in names)]
    assert list_images([str(folder)]) == [str(folder / name) for name in expected]
    assert list_images([str(folder / "x.png")]) == [str(folder / "x.png" / name) for name in names]
    assert "2 hidden, 1 .txt, 1 with a broken link; names of images end in .jpg" in caplog.text
    with pytest.raises(UsageError, match=r"gone.png is a broken link"):
        list_images([str(folder / "gone.png")])


@pytest.mark.parametrize("followed", [True, False])
@pytest.mark.parametrize(
    ("flags", "asked"),
    [([], None), (["--exif_orientation"], True), (["--noexif_orientation"], False)],
)
def test_orientation_and_background_are_those_of_the_model_file(
    followed, flags, asked, tmp_path, monkeypatch
):
    """A flag overrides the orientation."""
    seen = []

    def predict_nothing(self, images):
        seen.append(images)
        return Prediction(np.zeros(1), np.full((1, 3), 1 / 3, np.float32), ["a"])

    monkeypatch.setattr(PackedModel, "predict", predict_nothing)
    network = packed_network()
    notes = {**network.notes, "background": 255, "exif_orientation": followed}
    write_program(tmp_path / "model.safetensors", replace(network, notes=notes))
    pixels = np.full((8, 8, 4), 9, np.uint8)
    pixels[..., 3] = 255
    pixels[:, 4:, 3] = 0  # the right half is transparent
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees to the right
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    call(predict, tmp_path / "model.safetensors", tmp_path / "x.png", "--json", *flags)
    ((image,),) = seen
    expected = np.full((8, 8, 3), 9)
    expected[:, 4:] = 255
    if followed if asked is None else asked:
        expected = expected.swapaxes(0, 1)
    np.testing.assert_array_equal(image, expected)


def test_the_pixels_are_those_of_evaluation(tmp_path):
    """For streamed data, the shorter side is scaled and the centre is cropped."""
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (60, 90, 3), np.uint8)).save(file, "JPEG")
    (tmp_path / "x.jpg").write_bytes(file.getvalue())
    rules = PixelRules(channels=3)
    found = read_pixels(str(tmp_path / "x.jpg"), rules, size=32, shorter_side=36, resize=False)
    expected = evaluation_image(file.getvalue(), rules=rules, size=32, resize=36)
    np.testing.assert_array_equal(found, expected)


def test_what_is_wrong_is_said_before_any_work(model_file, tmp_path):
    (tmp_path / "empty").mkdir()
    wrong = {
        "name a model file": [],
        "name at least one image": [model_file],
        "there is no file or folder": [model_file, tmp_path / "no.jpg"],
        "holds no images": [model_file, tmp_path / "empty"],
        "named more than once": [model_file, "-", "-"],
        "takes no images": [model_file, "--benchmark", "x.jpg"],
        "leave out --exact": [model_file, "--benchmark", "--exact"],
        "there is no file": [tmp_path / "no.safetensors", model_file],
        "not a usable model file": [__file__, model_file],
        "top": [model_file, model_file, "--top=0"],
    }
    for message, arguments in wrong.items():
        with pytest.raises(UsageError, match=message):
            call(predict, *arguments)


def test_files_of_any_extension_are_taken_when_named(tmp_path):
    (tmp_path / "photo").write_bytes(b"")
    assert list_images([str(tmp_path / "photo"), "-"]) == [str(tmp_path / "photo"), "-"]


@pytest.mark.slow
def test_latency_with_one_thread_and_with_all(model_file, capsys):
    call(predict, model_file, "--benchmark", "--json")
    rows = lines(capsys.readouterr().out)
    assert rows[0]["threads"] == 1
    for row in rows:
        assert 0 < row["best_ms"] <= row["median_ms"]
        assert row["calls"] >= 3
