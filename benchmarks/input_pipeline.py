"""Measures images per second on one core: reading JPEG files for training, here and elsewhere.

    python -m benchmarks.input_pipeline FOLDER --json results.json

All sides do the same work on the same files, which are in memory: a random box of 8 to 100 % of the
area and an aspect of 3/4 to 4/3, scaled to 224x224, and mirrored half of the time. Batches are
uint8, except for one side, which ends in normalized floats as torchvision's usual transforms do; in
this project that last step runs on the device. The sides take turns, so that a busy machine slows
all of them, and ratios are taken within a round. TensorFlow's usual recipes scale without
antialiasing, which is less work than the other sides do, so it runs both with and without. Its
other defaults are kept: the less exact dct_method, fancy_upscaling, and boxes drawn by their
height, which are smaller on average.

The exactness of this project's pixels is measured too, as their mean difference from Pillow's for
the same boxes.
"""

import argparse
import ctypes
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

from benchmarks.origin import origin

SIZE = 224
BATCH = 32
AREA = (0.08, 1.0)  # the range that TensorFlow's operation takes
ASPECT = (3 / 4, 4 / 3)
OURS = "siman_jax"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def main() -> None:
    """Measure every side, print a table, and write the --json file."""
    args = parse_arguments()
    pin_to_one_core()
    keep_freed_memory()
    files = read_files(args.folder, args.images)
    sides = {}
    for name, start in PIPELINES.items():
        try:
            sides[name] = start(files)
            next(sides[name])  # compiles, and fills caches
        except ModuleNotFoundError as error:
            if error.name != "tensorflow":
                raise
            print("TensorFlow is left out, since it is not installed")
    turns: dict[str, list[Turn]] = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, batches in sides.items():
            turns[name].append(take_turn(batches, args.seconds))
    report = summarize(turns) | {
        "mean_difference_from_pillow": difference_from_pillow(files),
        "files": describe_files(files),
        **origin("input_pipeline"),
        "versions": versions(),
    }
    print_table(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="JPEG files anywhere below are read")
    parser.add_argument("--seconds", type=float, default=2, help="a side's turn in a round")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--images", type=int, default=1000, help="at most, picked evenly")
    parser.add_argument("--json", type=Path, help="file to write the result to")
    args = parser.parse_args()
    if not args.folder.is_dir():
        parser.error(f"there is no folder {args.folder}; name one that holds JPEG files")
    if args.json and not args.json.absolute().parent.is_dir():
        parser.error(f"there is no folder {args.json.absolute().parent} to write {args.json} to")
    if min(args.seconds, args.rounds, args.images) <= 0:
        parser.error("--seconds, --rounds and --images must be above 0")
    return args


def pin_to_one_core() -> None:
    """Keep this process, and threads that libraries start later, on the last core it may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    else:
        print("this system cannot pin a process, so threads of TensorFlow may use other cores")


def keep_freed_memory() -> None:
    """Make glibc reuse freed memory instead of returning it to the system.

    Otherwise chance decides whether a process gets new pages for every large array, which makes
    Pillow with normalized batches slower by a fifth.
    """
    if platform.libc_ver()[0] == "glibc":
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            ctypes.CDLL(None).mallopt(parameter, 2**30)


def read_files(folder: Path, limit: int) -> list[bytes]:
    """Read at most `limit` JPEG files, picked evenly from the sorted ones."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg"})
    files = [path.read_bytes() for path in paths[:: max(1, -(-len(paths) // limit))]]
    files = [data for data in files if data.startswith(b"\xff\xd8")]  # some .JPEG files are PNG
    if not files:
        sys.exit(f"there are no JPEG files below {folder}; looked for *.jpg and *.jpeg")
    return files


class InMemory(Sequence):
    """Files as records of one class, repeated, since Grain is slow to shuffle a few hundred."""

    def __init__(self, files: Sequence[bytes]) -> None:
        self._files = files

    def __len__(self) -> int:
        """Return a size like that of real data sets."""
        return 2**20

    def __getitem__(self, index: int) -> tuple:
        """Return data, label and name."""
        return self._files[index % len(self._files)], 0, str(index)


def ours(files: Sequence[bytes]) -> Iterator:
    """Use this project's loader, without reading ahead during the other sides' turns."""
    from siman_jax.configs import imagenet
    from siman_jax.data.pipeline import Share, training_batches

    data = imagenet.get_config().data
    data.min_area, data.max_area = AREA
    batches = training_batches(
        InMemory(files), data, Share(0, 1), step=0, batch_size=BATCH, epochs=10**6, seed=0
    )
    return (batches[index].images for index in itertools.count())


def pillow(files: Sequence[bytes]) -> Iterator:
    """Do what torchvision's RandomResizedCrop and RandomHorizontalFlip do with a Pillow image."""
    import numpy as np

    return in_batches(files, pillow_transform(), np.uint8)


def pillow_normalized(files: Sequence[bytes]) -> Iterator:
    """Do the same, then ToTensor and Normalize, which give `[3, SIZE, SIZE]` float32."""
    import numpy as np

    crop_and_flip = pillow_transform()
    mean_of_channels = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
    std_of_channels = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]

    def transform(data, rng):
        pixels = np.ascontiguousarray(crop_and_flip(data, rng).transpose(2, 0, 1))
        tensor = np.divide(pixels, 255, dtype=np.float32)
        tensor -= mean_of_channels
        tensor /= std_of_channels
        return tensor

    return in_batches(files, transform, np.float32)


def pillow_transform() -> Callable:
    """Build a function that crops, scales and flips an image."""
    import io

    import numpy as np
    from PIL import Image

    from siman_jax.data.decode import random_box

    def transform(data, rng):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        top, left, height, width = random_box(
            rng, image.height, image.width, area=AREA, aspect=ASPECT
        )
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(image)

    return transform


def tensorflow(files: Sequence[bytes], antialias: bool = False) -> Iterator:
    """Use tf.data with `decode_and_crop_jpeg`, on one thread."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    def transform(data):
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(data),
            bounding_boxes=tf.zeros([1, 0, 4]),
            min_object_covered=0,
            aspect_ratio_range=ASPECT,
            area_range=AREA,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], axis=0)
        image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
        image = tf.image.resize(image, [SIZE, SIZE], method="bilinear", antialias=antialias)
        return tf.cast(tf.image.random_flip_left_right(image), tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    # No prefetching, which would run during the turns of the other sides.
    options.experimental_optimization.apply_default_optimizations = False
    options.autotune.enabled = False
    data = tf.data.Dataset.from_tensor_slices(list(files)).repeat().map(transform).batch(BATCH)
    return data.with_options(options).as_numpy_iterator()


# By name, functions from files to an endless iterator of batches of BATCH images.
PIPELINES: dict[str, Callable[[Sequence[bytes]], Iterator]] = {
    OURS: ours,
    "pillow": pillow,
    "pillow, normalized": pillow_normalized,
    "tf.data": tensorflow,
    "tf.data, antialiased": partial(tensorflow, antialias=True),
}


def in_batches(files: Sequence[bytes], transform: Callable, dtype: type) -> Iterator:
    """Yield batches of `transform(data, rng)` of one file after the other, without end."""
    import numpy as np

    rng = np.random.default_rng(0)
    endless = itertools.cycle(files)
    while True:
        yield np.stack([transform(next(endless), rng) for _ in range(BATCH)], dtype=dtype)


def difference_from_pillow(files: Sequence[bytes]) -> float:
    """Compute the mean absolute difference of our images from Pillow's, in levels of 0 to 255."""
    import numpy as np

    from siman_jax.data.decode import training_image
    from siman_jax.data.pixels import PixelRules

    exact = pillow_transform()
    differences = []
    for seed, data in enumerate(files):
        rng, twin = np.random.default_rng(seed), np.random.default_rng(seed)
        image = training_image(
            data,
            rng,
            rules=PixelRules(channels=3),
            size=SIZE,
            min_area=AREA[0],
            max_area=AREA[1],
            flip=True,
        )
        differences.append(np.abs(np.subtract(image, exact(data, twin), dtype=int)).mean())
    return float(mean(differences))


class Turn(NamedTuple):
    """The result of one turn of a side.

    Attributes:
      images_per_second: by the clock.
      core_share: how much of a core it got; below 1 if other processes used the core too.
    """

    images_per_second: float
    core_share: float


def take_turn(batches: Iterator, seconds: float) -> Turn:
    """Take batches for some seconds."""
    count, start, start_of_work = 0, time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - start) < seconds:
        count += len(next(batches))
    return Turn(count / elapsed, (time.process_time() - start_of_work) / elapsed)


def summarize(turns: dict[str, list[Turn]]) -> dict:
    """Compute medians over the rounds; ratios are taken within a round."""
    return {
        "pipelines": {
            name: {
                "images_per_second": median(turn.images_per_second for turn in taken),
                "core_share": median(turn.core_share for turn in taken),
                "ours_is_faster_by": median(
                    ours.images_per_second / turn.images_per_second
                    for ours, turn in zip(turns[OURS], taken, strict=True)
                ),
                "rounds": taken,
            }
            for name, taken in turns.items()
        }
    }


def describe_files(files: Sequence[bytes]) -> dict:
    """Return the number of files and their mean size."""
    import io

    from PIL import Image

    sizes = [Image.open(io.BytesIO(data)).size for data in files]
    return {
        "count": len(files),
        "mean_kilobytes": mean(map(len, files)) / 1000,
        "mean_megapixels": mean(w * h for w, h in sizes) / 1e6,
    }


def versions() -> dict:
    """Return the versions of Python and of the imported modules."""
    modules = [m for m in ("numpy", "simplejpeg", "cv2", "PIL", "tensorflow") if m in sys.modules]
    return {
        "python": platform.python_version(),
        **{module: sys.modules[module].__version__ for module in modules},
    }


def print_table(report: dict) -> None:
    """Print one line for each side."""
    print(f"{'':20} {'images/s':>10} {'core share':>11} {'ours / it':>10}")
    for name, row in report["pipelines"].items():
        print(
            f"{name:20} {row['images_per_second']:10.0f} {row['core_share']:11.2f}"
            f" {row['ours_is_faster_by']:10.2f}"
        )
    difference = report["mean_difference_from_pillow"]
    print(f"{OURS}'s pixels differ from Pillow's by {difference:.2f} of 255 on average")
    files, versions = report["files"], report["versions"]
    print(
        f"one core of {report['machine']['cpu']}; {files['count']} files of"
        f" {files['mean_kilobytes']:.0f} kB"
        f" and {files['mean_megapixels']:.2f} megapixels on average"
    )
    print(", ".join(f"{name} {version}" for name, version in versions.items()))


if __name__ == "__main__":
    main()
