"""The fields of a config, and the types of their values."""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from siman_jax.data import SOURCES
from siman_jax.data.defaults import IMAGE_FILES, IN_MEMORY
from siman_jax.errors import UsageError, choose
from siman_jax.field_names import BOOL, LIST, NUMBER, NUMBERS, TEXT, WHOLE
from siman_jax.outside import is_outside

_IS: dict[str, Callable[[Any], bool]] = {
    WHOLE: lambda value: type(value) is int,
    NUMBER: lambda value: type(value) in (int, float),
    TEXT: lambda value: isinstance(value, str),
    BOOL: lambda value: isinstance(value, bool),
    LIST: lambda value: isinstance(value, list | tuple),
    NUMBERS: lambda value: (
        isinstance(value, list | tuple)
        and all(isinstance(part, int | float) and not isinstance(part, bool) for part in value)
    ),
}
_EXAMPLES = {WHOLE: "16", NUMBER: "0.1", TEXT: "'a'", BOOL: "True", LIST: "('a', 'b')"}
_EXAMPLES[NUMBERS] = "(0.5, 0.25)"
_LARGEST = 2.0**53  # numbers in a stored config must not be larger

# Fields of every config; configs/cifar10.py explains them.
_FIELDS = {
    **dict.fromkeys(("seed", "epochs", "batch_size", "accumulation_steps"), WHOLE),
    **dict.fromkeys(("eval_batch_size", "steps_per_dispatch", "keep_checkpoints"), WHOLE),
    **dict.fromkeys(("init_from", "init_checkpoint"), TEXT),
    "batch_norm_devices": WHOLE,
    "average_decay": NUMBER,
    **dict.fromkeys(("measure_kernels", "native", "shard_optimizer"), BOOL),
    **dict.fromkeys(("model.name", "model.weight_rule", "model.activation_rule"), TEXT),
    "model.dtype": TEXT,
    **dict.fromkeys(("model.shifts", "model.pooled_shortcuts", "model.last_norm"), BOOL),
    "loss.label_smoothing": NUMBER,
    "distillation.teacher": TEXT,
    **dict.fromkeys(("distillation.temperature", "distillation.weight"), NUMBER),
    "model.width": WHOLE,
    "data.source": TEXT,
    **dict.fromkeys(("data.resident", "data.flip"), BOOL),
    **dict.fromkeys(("data.image_size", "data.channels", "data.num_classes"), WHOLE),
    **dict.fromkeys(("data.crop_padding", "data.train_examples"), WHOLE),
    "data.validation_examples": WHOLE,
    "data.cutout": WHOLE,
    **dict.fromkeys(("data.color_jitter", "data.lighting", "data.mixup", "data.cutmix"), NUMBER),
    **dict.fromkeys(("data.mean", "data.std"), NUMBERS),
    **dict.fromkeys(("optimizer.learning_rate", "optimizer.warmup_epochs"), NUMBER),
    "optimizer.reference_batch_size": NUMBER,
    "optimizer.name": TEXT,
    **dict.fromkeys(("optimizer.momentum", "optimizer.weight_decay"), NUMBER),
    **dict.fromkeys(("optimizer.beta1", "optimizer.beta2", "optimizer.epsilon"), NUMBER),
    **dict.fromkeys(("optimizer.clip_norm", "optimizer.gradient_floor"), NUMBER),
    "optimizer.schedule": TEXT,
    "optimizer.step_epochs": NUMBERS,
    "optimizer.step_factor": NUMBER,
    **dict.fromkeys(("optimizer.kernel_decay", "optimizer.clip_percent"), NUMBER),
    **dict.fromkeys(("optimizer.bop_adaptivity", "optimizer.bop_threshold"), NUMBER),
    **dict.fromkeys(("optimizer.staircase", "optimizer.nesterov", "optimizer.bop"), BOOL),
    "optimizer.clip_decays": BOOL,
    "optimizer.undecayed": LIST,
    **dict.fromkeys(("estimator.first_sharpness", "estimator.last_sharpness"), NUMBER),
    **dict.fromkeys(("estimator.first_tau", "estimator.last_tau"), NUMBER),
}
# Further fields for images in files; data/defaults.py explains them.
_FILES = {
    **dict.fromkeys(("data.name", "data.tfds_dir", "data.root", "data.cache_dir"), TEXT),
    **dict.fromkeys(("data.train_split", "data.test_split"), TEXT),
    **dict.fromkeys(("data.exif_orientation", "data.resize"), BOOL),
    **dict.fromkeys(("data.background", "data.workers", "data.damaged_limit"), WHOLE),
    **dict.fromkeys(("data.min_area", "data.max_area"), NUMBER),
    "data.shorter_side": WHOLE,
}
_ALL = _FIELDS | _FILES
# A stored config needs at least these fields; others may be missing, since they were added later.
_NEEDED_OF_STORED = (
    "seed",
    "epochs",
    "batch_size",
    "model.name",
    "model.width",
    "model.weight_rule",
    "data.source",
    "data.image_size",
    "data.channels",
    "data.num_classes",
    "data.mean",
    "data.std",
)


def check_fields(config: ConfigDict) -> None:
    """Check that a config has all fields that its run reads, and the types of their values.

    Raises:
      UsageError: a field is missing, or its value has a wrong type; or the data source is unknown,
        or cannot stream.
    """
    fields = flat(config.to_dict())
    _check(fields, _FIELDS, "the config lacks", "all configs in configs/ have them")
    resident, source = config.data.resident, config.data.source
    if not is_outside(source):
        choose(SOURCES, source, "data source")
    if source in IN_MEMORY and not resident:
        raise UsageError(
            f"--config.data.source is {source!r}, whose data are in memory; set"
            " --config.data.resident=True."
        )
    if source in IMAGE_FILES or not resident:
        _check(
            fields,
            _FILES,
            "for images in files the config lacks",
            "make config.data with siman_jax.data.defaults.image_files(), as configs/cifar10.py"
            " does",
        )


def _check(
    fields: Mapping[str, Any], kinds: Mapping[str, str], before: str, what_to_do: str
) -> None:
    missing = [name for name in kinds if name not in fields]
    if missing:
        raise UsageError(f"{before} {', '.join(missing)}; {what_to_do}.")
    for name, kind in kinds.items():
        if not _IS[kind](fields[name]):
            raise UsageError(
                f"--config.{name} is {fields[name]!r}; it must be {kind}, such as"
                f" {_EXAMPLES[kind]}."
            )


def faults_of_stored(fields: Mapping[str, Any]) -> list[str]:
    """List what is wrong with the fields of a stored config, of this or an older version.

    Args:
      fields: any values of JSON, by paths such as "model.width".
    """
    streamed = ("data.shorter_side",) if fields.get("data.resident") is False else ()
    needed = (*_NEEDED_OF_STORED, *streamed)
    faults = []
    for table in sorted({name.partition(".")[0] for name in _ALL if "." in name}):
        if fields.get(table, {}) != {}:
            faults.append(f"{table} is {_short(fields[table])}, not a table")
    faults += [f"{name} is missing" for name in needed if name not in fields]
    for name, kind in _ALL.items():
        if name in fields and not _is_sound(fields[name], kind):
            faults.append(f"{name} is {_short(fields[name])}, not {kind}")
    return faults


def _is_sound(value: Any, kind: str) -> bool:
    if not _IS[kind](value):
        return False
    parts = value if kind in (LIST, NUMBERS) else [value]
    if kind == LIST and not all(type(part) in (int, float, str) for part in parts):
        return False
    # False for NaN too.
    return all(isinstance(p, str | bool) or -_LARGEST <= p <= _LARGEST for p in parts)


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 1e15 else "a huge number"
    return text if len(text) < 40 else f"{text[:36]} ..."


def flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables to values by paths such as "model.width"; empty tables are values."""
    found = {}
    for name, value in fields.items():
        path = f"{prefix}{name}"
        nested = isinstance(value, Mapping) and value
        found.update(flat(value, f"{path}.") if nested else {path: value})
    return found
