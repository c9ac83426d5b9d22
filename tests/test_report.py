"""Tests of the report: theory and fits computed in another way, and pages of whole and bad runs."""

import dataclasses
import itertools
import json
import math
import shutil
from html.parser import HTMLParser
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli import call, run
from PIL import Image
from scipy import stats

from siman_jax.analysis import gradients
from siman_jax.analysis.distributions import SHAPES, density, fit_scale, fit_shape_and_scale
from siman_jax.analysis.measures import Measures, binary_kernels, measure_layer
from siman_jax.analysis.theory import entropy, optimum
from siman_jax.configs import digits, imagenet
from siman_jax.data.dataset import Dataset, Split
from siman_jax.devices.mesh import make_mesh
from siman_jax.errors import UsageError
from siman_jax.models.layers import BinaryDense
from siman_jax.report import __main__ as command
from siman_jax.report.contents import make_sections
from siman_jax.report.figures import draw_curves, draw_flips_by_layer
from siman_jax.report.groups import Group, curve_over_seeds, group_runs, training_seconds
from siman_jax.report.runs import Run, has_measures, read_run
from siman_jax.report.svg import to_svg
from siman_jax.report.tables import DISTRIBUTIONS
from siman_jax.rules import WEIGHT_RULES, identity
from siman_jax.rules.magnitude_bits import angle_optimal_bits, cosine, half_half_bits
from siman_jax.runs.stored_run import FAILURE_FILE, create_run, load_run
from siman_jax.runs.train import train
from siman_jax.runs.workdir import read_config
from siman_jax.training.step import TrainState
from siman_jax.training.task import model_from_config

# |w| of each distribution; and share, entropy, cosine, half-half and sign as printed.
THEORY = {
    "Laplacian": (stats.expon, (0.368, 0.949, 0.858, 0.847, 0.707), 3),
    "Gaussian": (stats.halfnorm, (0.5405, 0.9953, 0.8999, 0.8988, 0.7979), 4),
    "uniform": (stats.uniform, (0.667, 0.918, 0.943, 0.919, 0.866), 3),
}


@pytest.mark.parametrize("name", THEORY)
def test_the_table_of_the_method(name, x64):
    """From incomplete gamma functions, and by the bit rules from 200,000 quantiles."""
    magnitudes, printed, digits_ = THEORY[name]
    assert tuple(round(x, digits_) for x in optimum(DISTRIBUTIONS[name])) == printed
    n = 200_000
    w = jnp.asarray(magnitudes.ppf((np.arange(n) + 0.5) / n))[:, None]
    best = angle_optimal_bits(w)
    found = (
        best.share,
        entropy(best.share),
        best.cosine,
        cosine(w, half_half_bits(w)),
        cosine(w, jnp.ones_like(w)),
    )
    for ours, numeric in zip(optimum(DISTRIBUTIONS[name]), found, strict=True):
        assert ours == pytest.approx(float(numeric[0]), abs=3e-5)
    if name == "Laplacian":
        assert optimum(DISTRIBUTIONS[name]).share == pytest.approx(1 / math.e, abs=1e-12)


@pytest.mark.parametrize("shape", [0.6, 1.0, 1.5, 2.0, 6.0])
def test_fits_recover_what_was_drawn_and_agree_with_scipy(shape):
    w = stats.gennorm.rvs(shape, scale=0.3, size=40_000, random_state=0)
    fit = fit_shape_and_scale(w.astype(np.float32))
    assert fit.shape == pytest.approx(shape, rel=0.05)
    assert fit.scale == pytest.approx(0.3, rel=0.05)
    logpdf = stats.gennorm.logpdf(w, fit.shape, scale=fit.scale)
    assert fit.log_likelihood == pytest.approx(logpdf.mean(), abs=1e-5)
    laplacian, gaussian = fit_scale(w, 1.0), fit_scale(w, 2.0)
    for ours, family in ((laplacian, stats.laplace), (gaussian, stats.norm)):
        location, scale = family.fit(w, floc=0)
        expected = family.logpdf(w, location, scale).mean()
        assert ours.log_likelihood == pytest.approx(expected, abs=1e-9)
        assert fit.log_likelihood >= expected - 1e-6
        x = np.linspace(-1, 1, 5)
        np.testing.assert_allclose(density(ours, x), family.pdf(x, location, scale))
    best = stats.gennorm.fit(w[:2000], floc=0)
    ours = fit_shape_and_scale(w[:2000])
    assert ours.log_likelihood >= stats.gennorm.logpdf(w[:2000], *best).mean() - 1e-6


def test_fits_of_weights_that_are_all_alike_or_all_zero():
    alike = fit_shape_and_scale(np.array([-1.0, 1.0, 1.0, -1.0]))
    assert alike.shape == pytest.approx(SHAPES[1], rel=1e-3)
    for w in (np.zeros(4), np.array([0.0, 1e-30, 1e30])):
        assert all(map(math.isfinite, fit_shape_and_scale(w)))


def test_measures_of_known_kernels():
    """One filter has two equal halves; another has one large weight on either side."""
    n = 100
    two_level = np.repeat([1.0, -1.0, 3.0, -3.0], n // 4)
    peaked = np.zeros(n)
    peaked[:2] = 5.0, -5.0
    kernel = jnp.asarray(np.stack([two_level, peaked], 1), jnp.float32).reshape(5, 20, 2)
    layer = measure_layer("a/b", kernel)
    assert (layer.name, layer.weights, layer.filters) == ("a/b", 2 * n, 2)
    # (3 + 3 + 1 + 1) / sqrt(4 * 20) < (3 + 3) / sqrt(2 * 20): the larger half is best.
    half = 6 / math.sqrt(2 * 20)
    assert layer.share == pytest.approx((0.5 + 0.02) / 2)
    assert layer.entropy == pytest.approx((1 + float(entropy(0.02))) / 2, abs=1e-6)
    assert layer.cosine == pytest.approx((half + 1) / 2, abs=1e-5)
    # Tied with the median are 98 zeros: half-half gives them 0.
    assert layer.half_half_cosine == pytest.approx((half + 1) / 2, abs=1e-5)
    signs = (8 / math.sqrt(80) + 10 / math.sqrt(n * 50)) / 2
    assert layer.sign_cosine == pytest.approx(signs, abs=1e-5)
    # The two large ones are at 7.04 standard deviations, outside the histogram.
    assert sum(layer.counts) == 2 * n - 2
    assert layer.generalised.log_likelihood >= layer.laplacian.log_likelihood


def test_measures_do_not_depend_on_the_size_of_weights():
    """Weight decay makes filters small, some more than others."""
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 16, 8))
    expected = measure_layer("", kernel).measures()
    sizes = jnp.geomspace(1e-4, 1, 8).reshape(1, 1, 1, 8)
    found = measure_layer("", kernel * sizes).measures()
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A narrow network on the digits; and as if of another seed, with one epoch logged of two.

    The second's log holds no measures of kernels.
    """
    folder = tmp_path_factory.mktemp("runs")
    config = digits.get_config()
    config.update({"epochs": 2, "batch_size": 256, "measure_kernels": True})
    config.model.update({"name": "cifar.vgg_small_1w1a", "width": 4})
    train(config, folder / "seed0", make_mesh(1))
    shutil.copytree(folder / "seed0", folder / "seed1")
    edit_config(folder / "seed1", lambda fields: fields.update(seed=1))
    path = folder / "seed1" / "log.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    row = {name: value for name, value in row.items() if name not in Measures._fields}
    path.write_text(json.dumps({**row, "test_top1": row["test_top1"] + 3}) + "\n")
    return folder


def edit_config(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


class Page(HTMLParser):
    """Checks that tags are nested; collects ids and the addresses that a browser would load."""

    VOID = ("meta", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.loads, self.text, self.svgs = [], [], [], [], 0
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        self.svgs += tag == "svg"
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.loads.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_a_page_that_needs_nothing_else_and_its_numbers(runs, tmp_path, capsys):
    out = tmp_path / "report"
    call(command.main, runs / "seed0", runs / "seed1", f"--out={out}", "--labels=first <1>,second")
    assert "2 runs" in capsys.readouterr().out
    text = (out / "index.html").read_text()
    page = Page(text)
    assert "http" not in text
    assert "@import" not in text
    assert "url(" not in text.replace("url(#", "")
    assert all(load.startswith(("#", "data:image/png;base64,")) for load in page.loads)
    assert {load[1:] for load in page.loads if load.startswith("#")} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    assert "prefers-color-scheme: dark" in text
    assert "currentColor" in text
    assert "#000000" not in text.split("</style>", 1)[1]
    assert "Layers of first <1>" in page.text
    pictures = sorted(path.name for path in (out / "figures").iterdir())
    assert page.svgs == len(pictures)
    assert {"accuracy.png", "theory-share.png", "run1-first-1-histograms.png"} <= set(pictures)
    assert all((out / "figures" / p).read_bytes().startswith(b"\x89PNG") for p in pictures)

    numbers = json.loads((out / "report.json").read_text())
    assert numbers["theory"]["Laplacian"]["share"] == pytest.approx(1 / math.e)
    assert numbers["left_out"] == []
    (group,) = numbers["groups"]
    assert group["runs"] == ["first <1>", "second"]
    curve = group["curves"]["test_top1"]
    logs = [one["log"] for one in numbers["runs"]]
    first = [log[0]["test_top1"] for log in logs]
    assert (curve["epochs"], curve["runs"]) == ([1, 2], [2, 1])
    assert curve["mean"] == pytest.approx([np.mean(first), logs[0][1]["test_top1"]])
    assert curve["spread"] == pytest.approx([np.std(first, ddof=1), None])
    # The second run stopped early, so its last row is not comparable with the first one's.
    end = group["at_the_end"]["last_test_top1"]
    assert end == {"mean": logs[0][1]["test_top1"], "std": None, "n": 1}
    assert group["at_the_end"]["fitted_shape"]["n"] == 1
    assert "± deviation" not in text
    one = numbers["runs"][0]
    assert [c["epoch"] for c in one["checkpoints"]] == [1, 2]
    layer = one["checkpoints"][-1]["layers"][0]
    config = read_config(runs / "seed0")
    state = load_run(config, runs / "seed0", make_mesh(1)).progress.state
    kernel = state.params["conv1"]["binary_kernel"]
    assert layer["name"] == "conv1"
    assert layer["share"] == pytest.approx(measure_layer("", kernel).share)
    assert layer["generalised"]["log_likelihood"] >= layer["laplacian"]["log_likelihood"]
    assert f"{layer['half_half_cosine']:.4f}" in page.text

    with pytest.raises(UsageError, match=r"holds a report; .* replace it by --overwrite"):
        call(command.main, runs / "seed0", f"--out={out}")
    logged_only = tmp_path / "logged"
    shutil.copytree(runs / "seed1", logged_only, ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(SystemExit):  # its layers are left out
        call(command.main, logged_only, f"--out={out}", "--overwrite")
    assert not (out / "figures" / "run1-first-1-histograms.png").exists()
    assert json.loads((out / "report.json").read_text())["runs"][0]["label"] == "logged"


@pytest.mark.slow
def test_logs_alone_tell_how_kernels_changed(runs, tmp_path):
    """Report on a run without checkpoints, as studies are kept; nothing is missing."""
    kept = tmp_path / "variant" / "seed0"
    shutil.copytree(runs / "seed0", kept, ignore=shutil.ignore_patterns("checkpoints"))
    edit_config(kept, lambda fields: fields.update(seed=7))
    call(command.main, kept, runs / "seed0", f"--out={tmp_path / 'report'}")
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    (group,) = numbers["groups"]
    assert group["runs"] == ["variant/seed0", f"{runs.name}/seed0"]
    state = load_run(read_config(runs / "seed0"), runs / "seed0", make_mesh(1)).progress.state
    layers = [measure_layer(*kernel).measures() for kernel in binary_kernels(state.params)]
    for name in Measures._fields:
        curve = group["curves"][f"mean_{name}"]
        assert (curve["epochs"], curve["runs"], curve["spread"][1]) == ([1, 2], [2, 2], 0)
        assert curve["mean"][1] == pytest.approx(np.mean([getattr(x, name) for x in layers]))
        end = group["at_the_end"].get(name)
        assert end is None or end == {"mean": pytest.approx(curve["mean"][1]), "std": 0, "n": 2}
    assert {"best_share", "sign_cosine"} <= group["at_the_end"].keys()
    text = (tmp_path / "report" / "index.html").read_text()
    assert "mean of 2 ± deviation" in text
    figures = {path.name for path in (tmp_path / "report" / "figures").iterdir()}
    assert {"kernels-shape.png", "kernels-shape-by-layer.png"} <= figures
    # Equal from the log and from both checkpoints.
    logged = read_run(runs / "seed0", "", make_mesh(1)).moments()
    measured = read_run(runs / "seed1", "", make_mesh(1)).moments()
    assert [moment.time for moment in logged] == [moment.time for moment in measured] == [1, 2]
    np.testing.assert_allclose(logged[1].layers, measured[1].layers, rtol=1e-6)
    assert "Kernels" in Page(text).text


@pytest.mark.slow
def test_broken_runs_are_named_and_the_rest_stands(runs, tmp_path, capsys):
    broken = {
        name: tmp_path / name
        for name in (
            *("bare", "cut", "newer", "older", "other", "dotted", "failed"),
            *("damaged", "strange"),
        )
    }
    for name, folder in broken.items():
        shutil.copytree(runs / ("seed1" if name == "bare" else "seed0"), folder)
    shutil.rmtree(broken["bare"] / "checkpoints")
    log = (broken["cut"] / "log.jsonl").read_text()
    strange = json.dumps({**json.loads(log.splitlines()[0]), "more": {"of it": math.nan}})
    (broken["cut"] / "log.jsonl").write_text(f"{log[:-200]}\n17\n{strange}\n")
    edit_config(broken["newer"], lambda config: config["model"].update(groups=3))
    edit_config(broken["older"], lambda config: config.pop("seed"))
    edit_config(broken["other"], lambda config: config.update(batch_size=None, data={}))
    edit_config(broken["dotted"], lambda config: config.update({"model.width": 3}))
    (broken["failed"] / FAILURE_FILE).write_text("the loss is not finite at step 6\n")
    edit_config(broken["strange"], lambda config: config["model"].update(width=8))
    (broken["strange"] / "log.jsonl").write_bytes(b"\xff\xfe")
    for metadata in (broken["damaged"] / "checkpoints").glob("*/state/_METADATA"):
        metadata.write_text("{")
        break
    missing = tmp_path / "missing"
    out = tmp_path / "report"
    with pytest.raises(SystemExit) as status:
        call(command.main, runs / "seed0", *broken.values(), missing, f"--out={out}")
    assert status.value.code == command.SOME_LEFT_OUT
    errors = capsys.readouterr().err
    page = " ".join(Page((out / "index.html").read_text()).text)
    said = json.loads((out / "report.json").read_text())["left_out"]
    for name, problem in {
        "bare": "it holds no checkpoint",
        "cut": "3 of the 4 lines of its log are incomplete",
        "newer": "the config is of another version",
        "older": "seed is missing",
        "other": "data.source is missing",
        "dotted": "config.json is damaged",
        "failed": "the loss is not finite at step 6",
        "damaged": "cannot be read",
        "strange": "is of another network",
        "missing": "there is no run in",
    }.items():
        assert any(x["run"] == name and problem in x["problem"] for x in said), (name, said)
        assert problem in page
        assert problem in errors
    shown = {one["label"]: one for one in json.loads((out / "report.json").read_text())["runs"]}
    # A run with neither log nor checkpoints is not shown; one of them is enough.
    assert list(shown) == ["seed0", "bare", "cut", "newer", "failed", "damaged"]
    assert len(shown["cut"]["log"]) == 1
    assert len(shown["damaged"]["checkpoints"]) == 1
    assert shown["newer"]["checkpoints"] == shown["bare"]["checkpoints"] == []
    assert len(shown["seed0"]["checkpoints"]) == len(shown["cut"]["checkpoints"]) == 2


def test_weights_that_nothing_fits_are_left_out(runs, tmp_path):
    """One run has a layer of zeros, another has NaN."""
    config = read_config(runs / "seed0").copy_and_resolve_references()
    state = load_run(config, runs / "seed0", make_mesh(1)).progress.state
    params = jax.tree.map(lambda leaf: leaf, state.params)
    for name, kernel in (("dead", 0.0), ("nan", jnp.nan)):
        ones = params["conv1"]["binary_kernel"]
        broken = {**params, "conv1": {**params["conv1"], "binary_kernel": kernel * ones}}
        variables = {"params": broken, "batch_stats": state.batch_stats}
        create_run(config, tmp_path / name, make_mesh(1), variables)
        with pytest.raises(UsageError, match="not finite, or all equal, in conv1"):
            read_run(tmp_path / name, name, make_mesh(1))


def test_logs_with_gaps_and_with_other_layers(runs):
    """A missing epoch keeps its column; measures of other layers are not drawn as a curve."""
    run = read_run(runs / "seed0", "", make_mesh(1))
    first, last = run.rows
    run.rows = [first, {**last, "epoch": 4}]
    (axes, _) = draw_flips_by_layer(run).axes
    shares = axes.images[0].get_array()
    assert shares.shape[1] == 4
    assert np.ma.getmaskarray(np.ma.masked_invalid(shares)).all(0).tolist() == [0, 1, 1, 0]
    assert has_measures(run.rows)
    fewer = {name: dict(list(last[name].items())[1:]) for name in Measures._fields}
    assert not has_measures([first, {**last, **fewer}])


def test_a_loss_that_explodes_leaves_the_others_to_be_seen(runs):
    run = read_run(runs / "seed0", "", make_mesh(1))
    wild = dataclasses.replace(run, rows=[{**row, "test_loss": 1e18} for row in run.rows])
    figure = draw_curves([Group("a", [run], 0), Group("b", [wild], 1)], "loss", "")
    limits = (0, 3 * max(row["train_loss"] for row in run.rows))
    assert figure.axes[0].get_ylim() == pytest.approx(limits)
    assert len(figure.axes[0].lines) == 5  # two of each group, and the legend's
    many = draw_curves([Group(str(i), [run], i) for i in range(9)], "loss", "")
    assert len(many.axes[0].lines) == 9


def test_labels_are_shown_as_they_are(runs):
    run = read_run(runs / "seed0", "", make_mesh(1))
    figure = draw_curves([Group("_$\\foo$_", [run], 0)], "top1", "")
    svg = to_svg(figure, "a", "")
    assert "_$\\foo$_" in svg


def test_odd_characters_of_labels_are_shown_as_escapes():
    assert command.name_runs([Path("runs/\x1b[2J\udcff")], None) == [r"\x1b[2J\udcff"]
    assert command.name_runs([Path("a"), Path("b")], ["\r", "é"]) == [r"\r", "é"]


@pytest.mark.slow
def test_a_network_without_binary_layers(runs, tmp_path):
    """Layers are not shown, and the report is made all the same."""
    config = read_config(runs / "seed0").copy_and_resolve_references().unlock()
    config.model.weight_rule = "real"
    variables = model_from_config(config).init(
        jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False
    )
    workdir = tmp_path / "real"
    create_run(config, workdir, make_mesh(1), variables)
    nothing = {key: {} for key in ("flips", *Measures._fields)}
    rows = [json.loads(line) for line in (runs / "seed0" / "log.jsonl").read_text().splitlines()]
    (workdir / "log.jsonl").write_text("".join(json.dumps(row | nothing) + "\n" for row in rows))
    real = read_run(workdir, "real", make_mesh(1))
    assert real.problems == ["its network has no binary layer"]
    sections = make_sections(group_runs([real]), {})
    assert [section.title for section in sections] == ["Training", "Theory"]
    assert [picture.name for picture in sections[0].pictures] == ["accuracy", "loss"]
    assert [row[-2] for row in sections[0].tables[0].rows] == ["-"]  # no bits, no flips


def test_runs_are_grouped_by_what_matters(runs, tmp_path):
    def of(**fields):
        config = read_config(runs / "seed0").copy_and_resolve_references()
        config.update(fields)
        name = "-".join(f"{key}{value}" for key, value in fields.items())
        row = {"epoch": 1, "step": 10, "test_top1": 5.0, "images_per_second": 100.0}
        return Run(name, tmp_path, config, [row])

    again = of(seed=2)
    elsewhere = of(seed=4)
    with elsewhere.config.unlocked():
        elsewhere.config.data.root = "other/images"
    runs = [of(seed=1), of(epochs=9), of(seed=2, keep_checkpoints=9), of(seed=3, eval_batch_size=1)]
    groups = group_runs([*runs, elsewhere, again])
    assert [[run.label for run in group.runs] for group in groups] == [
        ["seed1", "seed2-keep_checkpoints9", "seed3-eval_batch_size1"],
        ["epochs9"],
        ["seed4"],
        ["seed2"],  # the same run again is not another sample
    ]
    assert [group.number for group in groups] == [0, 1, 2, 3]
    assert curve_over_seeds(runs, lambda row: row["test_top1"]).runs == [4]
    assert training_seconds(runs[0]) == pytest.approx(10 * 256 / 100)


class OneLayer(nn.Module):
    """The images' pixels times one binary matrix."""

    @nn.compact
    def __call__(self, images, train):
        return BinaryDense(10, activation_rule="real")(images.reshape(len(images), -1))


@pytest.mark.slow
def test_gradients_agree_where_the_loss_is_smooth_and_less_on_a_staircase(runs, monkeypatch):
    config = read_config(runs / "seed0")
    monkeypatch.setattr(gradients, "model_from_config", lambda config: OneLayer())
    params = OneLayer().init(jax.random.key(1), jnp.zeros((1, 8, 8, 1)), train=True)["params"]
    state = TrainState(step=jnp.int32(0), params=params, batch_stats={}, opt_state=())
    (stairs,) = gradients.gradient_mismatch(config, state, make_mesh(1), directions=40)
    assert stairs.name == "BinaryDense_0"
    assert 0.2 < stairs.cosine < 0.95
    assert stairs.standard_error == pytest.approx(math.sqrt((1 - stairs.cosine**2) / 39))
    # With the latent kernel itself as the code, the loss is smooth, and both gradients agree.
    smooth_rule = dataclasses.replace(WEIGHT_RULES["half_half"], kernel=identity)
    monkeypatch.setitem(WEIGHT_RULES, "half_half", smooth_rule)
    (smooth,) = gradients.gradient_mismatch(config, state, make_mesh(1), directions=10)
    assert smooth.cosine > 0.999


@pytest.mark.slow
def test_gradients_on_data_that_are_streamed(tmp_path, monkeypatch):
    for split, name in itertools.product(("train", "val"), ("dark", "light")):
        (tmp_path / split / name).mkdir(parents=True)
        level = 200 if name == "light" else 50
        Image.new("RGB", (20, 16), (level, level, 0)).save(tmp_path / split / name / "0.png")
    config = imagenet.get_config()
    config.data.update({"source": "image_folder", "root": str(tmp_path), "test_split": "val"})
    config.data.update({"num_classes": 2, "image_size": 8, "shorter_side": 10})
    monkeypatch.setattr(gradients, "model_from_config", lambda config: OneLayer())
    params = OneLayer().init(jax.random.key(1), jnp.zeros((1, 8, 8, 3)), train=True)["params"]
    state = TrainState(step=jnp.int32(0), params=params, batch_stats={}, opt_state=())
    (found,) = gradients.gradient_mismatch(config, state, make_mesh(1), directions=2)
    # Streamed images give the same as images in memory.
    images = np.stack([np.full((8, 8, 3), (level, level, 0), np.uint8) for level in (50, 200)])
    split = Split(images, np.arange(2, dtype=np.int32))
    monkeypatch.setattr(gradients, "load_dataset", lambda config: Dataset(split, split, ("", "")))
    (expected,) = gradients.gradient_mismatch(config, state, make_mesh(1), directions=2)
    assert found.name == "BinaryDense_0"
    assert 0 < abs(found.cosine) < 1
    assert found.cosine == pytest.approx(expected.cosine, abs=1e-6)


def test_gradients_are_not_compared_on_other_classes(runs, tmp_path, capsys):
    """Labels of data with other classes would mean something else."""
    shutil.copytree(runs / "seed0", tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "data.json").read_text())
    facts["classes"][3] = "three"
    (tmp_path / "run" / "data.json").write_text(json.dumps(facts))
    with pytest.raises(SystemExit):
        call(command.main, tmp_path / "run", f"--out={tmp_path / 'report'}", "--gradients=2")
    assert "left out: run: gradients: the data have other classes" in capsys.readouterr().err


def test_an_svg_stands_in_a_page():
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().set_title("0.123456 of a & b")
    svg = to_svg(figure, "a", "says what it shows")
    assert svg.startswith("<svg viewBox=")
    assert 'role="img" aria-label="says what it shows"' in svg
    assert "0.123456 of a &amp; b" in svg
    assert "xmlns" not in svg
    assert svg == to_svg(figure, "a", "says what it shows")


def test_what_is_wrong_is_said_before_any_work(runs, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    (tmp_path / "file").write_text("")
    one, two = runs / "seed0", runs / "seed1"
    wrong = {
        "name the folders of runs": [],
        "a run is given twice": [one, one],
        "--labels has 1 names for 2 runs": [one, two, "--labels=a"],
        "same name twice": [one, two, "--labels=a,a"],
        "holds other files": [one, f"--out={tmp_path / 'full'}"],
        "is a file; name a folder": [one, f"--out={tmp_path / 'file'}"],
        "gradients": [one, "--gradients=-1"],
        "too few to measure agreement": [one, "--gradients=1"],
        "none of the runs can be read": [tmp_path / "nothing", f"--out={tmp_path / 'out'}"],
    }
    for message, arguments in wrong.items():
        with pytest.raises(UsageError, match=message):
            call(command.main, *arguments)
    assert not (tmp_path / "out").exists()


def test_the_command_ends_with_status_2(tmp_path):
    result = run("report", tmp_path)
    assert result.returncode == 2
    assert "\nerror: none of the runs can be read:" in result.stderr
    assert "there is no run in" in result.stderr
