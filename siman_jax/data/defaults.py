"""The fields of `config.data` for each kind of data, with defaults; the configs build on them."""

from ml_collections import ConfigDict

# The sources of this package, by the kind of their data.
IN_MEMORY = ("digits", "arrays")
IMAGE_FILES = ("tfds", "image_folder")


def images_in_memory() -> ConfigDict:
    """Return the fields for images that their source gives decoded: digits, arrays."""
    data = ConfigDict()
    data.source = "digits"
    # Training images, evenly spaced, that are evaluated instead of the test split; 0: none.
    data.validation_examples = 0
    data.train_examples = 0  # number of the other training images, evenly spaced; 0: all
    data.resident = True  # keep all data in device memory
    data.image_size = 32
    data.channels = 3
    data.num_classes = 10
    data.mean = (0.485, 0.456, 0.406)
    data.std = (0.229, 0.224, 0.225)
    data.crop_padding = 4  # in memory: padding before random crops
    data.flip = True  # mirror training images with probability 1/2
    data.color_jitter = 0.0  # change brightness, contrast and saturation by up to this share
    data.lighting = 0.0  # standard deviation of AlexNet's shifts of colour
    data.cutout = 0  # side of the square that is cut out, in pixels
    data.mixup = 0.0  # alpha of mixup: two images mixed; 0: off
    data.cutmix = 0.0  # alpha of cutmix: a part of another image; 0: off
    return data


def image_files() -> ConfigDict:
    """Return the fields for encoded images, in memory or streamed: tfds, image_folder."""
    data = images_in_memory()
    data.source = "image_folder"
    data.num_classes = 0  # 0: the number of folders in ROOT's training split
    data.name = ""  # tfds: name of the data set
    data.tfds_dir = ""  # tfds: folder of prepared data sets; "": ~/tensorflow_datasets
    data.root = ""  # image_folder: ROOT/{train,test}/CLASS/*.jpg
    data.train_split = "train"
    data.test_split = "test"
    data.background = 0  # grey level behind transparent parts: 0 black, 255 white
    data.exif_orientation = False  # turn images as their EXIF data say
    # In memory, where images are decoded once.
    data.resize = False  # scale and crop images of other sizes
    data.cache_dir = ""  # cache of decoded images; "": none
    # Streamed, with resident=False.
    data.workers = 16  # reading processes for each training process; 0: a few threads
    data.damaged_limit = 0  # damaged images in an epoch that may be left out
    data.min_area = 0.08  # of random crops, as a fraction of the image
    data.max_area = 1.25
    data.shorter_side = 256  # in evaluation: size before the central crop
    return data


def are_files(data: ConfigDict) -> bool:
    """Whether `data` has the fields of `image_files`."""
    return set(image_files()) <= set(data)


def fields_of(source: str) -> ConfigDict:
    """Return the fields for a source of this package."""
    return image_files() if source in IMAGE_FILES else images_in_memory()


def evaluated_images(data: ConfigDict) -> str:
    """Say on which images a run with this `config.data` is evaluated."""
    held_out = data.validation_examples
    return f"{held_out:,} held-out training images" if held_out else "the test split"
