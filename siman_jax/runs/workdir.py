"""The folder of a run, and the config in it."""

import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from siman_jax.data.defaults import fields_of
from siman_jax.devices.mesh import all_agree, is_first_process
from siman_jax.errors import UsageError
from siman_jax.output import write_whole
from siman_jax.training.field_types import faults_of_stored, flat

_CONFIG_FILE = "config.json"
_MOST_FAULTS = 5  # listed in a message
# Fields that may change when a run is resumed: results depend on them only by rounding, as long as
# folders that moved have the same contents.
_OPERATIONAL = {
    "config.eval_batch_size",
    "config.steps_per_dispatch",
    "config.keep_checkpoints",
    "config.measure_kernels",
    "config.native",
    "config.shard_optimizer",
    "config.data.cache_dir",
    "config.data.root",
    "config.data.tfds_dir",
    "config.data.workers",
    "config.data.damaged_limit",
}

# Fields that older configs lack, with the values that continue a run as it started. Fields of the
# data have the defaults of `data.defaults`.
_ADDED: dict[str, Any] = {
    "config.accumulation_steps": 1,
    "config.measure_kernels": False,
    "config.batch_norm_devices": 0,
    "config.native": True,
    "config.shard_optimizer": False,
    "config.init_from": "",
    "config.init_checkpoint": "last",
    "config.average_decay": 0.0,
    "config.model.shifts": False,
    "config.model.pooled_shortcuts": False,
    "config.model.last_norm": True,
    "config.loss.label_smoothing": 0.0,
    "config.distillation.teacher": "",
    "config.distillation.temperature": 1.0,
    "config.distillation.weight": 1.0,
    "config.optimizer.name": "sgd",
    "config.optimizer.beta1": 0.9,
    "config.optimizer.beta2": 0.999,
    "config.optimizer.epsilon": 1e-8,
    "config.optimizer.clip_norm": 0.0,
    "config.optimizer.gradient_floor": 0.0,
    "config.optimizer.schedule": "cosine",
    "config.optimizer.step_epochs": [],
    "config.optimizer.step_factor": 0.1,
    "config.optimizer.reference_batch_size": 0,
    "config.optimizer.kernel_decay": 0.0,
    "config.optimizer.clip_decays": True,
    "config.optimizer.bop": False,
    "config.optimizer.bop_adaptivity": 1e-4,
    "config.optimizer.bop_threshold": 1e-8,
    "config.estimator.first_sharpness": 1e-2,
    "config.estimator.last_sharpness": 10.0,
    "config.estimator.first_tau": 0.85,
    "config.estimator.last_tau": 0.99,
}
# A field that took whole numbers only in older versions. Where it is whole it is stored as before,
# so that equal configs have the same text, digest and group in reports.
_ONCE_WHOLE = ("optimizer", "warmup_epochs")
_log = logging.getLogger(__name__)


def default_workdir(config: str) -> Path:
    """Return the default folder of a run.

    Args:
      config: value of `--config`: the config's file, and its variant after a colon.

    >>> print(default_workdir("configs/digits.py"), default_workdir("configs/cifar10.py:resnet18"))
    runs/digits runs/cifar10-resnet18
    """
    file, _, variant = config.partition(":")
    names = [Path(file).stem, *re.findall(r"[\w.=]+", variant)]
    return Path("runs") / "-".join(names)


def check_workdir(config: ConfigDict, workdir: Path) -> None:
    """Check that a folder holds no run of another config; nothing is written.

    Raises:
      UsageError: it does, and the message lists the fields that differ; or the folder's name is not
        valid UTF-8.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"--workdir={workdir} is a file; name a folder.")
    if any("\ud800" <= char <= "\udfff" for char in str(workdir.absolute())):
        raise UsageError(
            f"--workdir={workdir} is not valid UTF-8, which checkpoints need; name another folder."
        )
    path = workdir / _CONFIG_FILE
    if not path.exists():
        return
    saved = flat(_parse(path), "config.")
    given = flat(_plain(config), "config.")
    added = {key: value for key, value in _added(saved).items() if key in given}
    saved |= added
    none = "no such field"
    different = [
        f"{key}: {saved.get(key, none)} there, {given.get(key, none)} here"
        for key in sorted((saved.keys() | given.keys()) - _OPERATIONAL)
        if saved.get(key, none) != given.get(key, none)
    ]
    if different:
        raise UsageError(
            f"{workdir} holds a run of another config:\n  "
            + "\n  ".join(different)
            + "\nUse the config of that run, or name another --workdir."
        )
    _log_added(added, workdir)


def holds_run(workdir: Path) -> bool:
    """Whether there is a run's config in a folder."""
    return (workdir / _CONFIG_FILE).exists()


def read_config(workdir: Path) -> ConfigDict:
    """Read the config of the run in `workdir`; new fields that an older config lacks are added.

    Raises:
      UsageError: there is no config, or it is damaged, or its version is too old.
    """
    path = workdir / _CONFIG_FILE
    if not path.is_file():
        raise UsageError(
            f"there is no run in {workdir}; expected its {_CONFIG_FILE}. Name the folder of a run."
        )
    fields = _parse(path)
    faults = faults_of_stored(flat(fields))
    if faults:
        raise UsageError(
            f"{path} is damaged or of another version: {'; '.join(faults[:_MOST_FAULTS])}"
            f"{' ...' if len(faults) > _MOST_FAULTS else ''}. Restore it from a copy, or use the"
            " version that wrote it."
        )
    added = _added(flat(fields, "config."))
    try:
        for key, value in added.items():
            _, *sections, name = key.split(".")
            section = fields
            for part in sections:
                section = section.setdefault(part, {})
            section[name] = value
        return ConfigDict(fields).lock()
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # impossible names of fields
        raise UsageError(f"{path} is damaged: {error}") from None


def _added(saved: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that a config of an older version lacks, with their defaults."""
    data = fields_of(str(saved.get("config.data.source"))).to_dict()
    added = _ADDED | {f"config.data.{name}": value for name, value in data.items()}
    return {key: value for key, value in added.items() if key not in saved}


def _log_added(added: dict[str, Any], workdir: Path) -> None:
    """Log the fields that a run of an older version lacks, with the defaults that it gets."""
    taken = [f"{key}={value}" for key, value in added.items() if key not in _OPERATIONAL]
    if taken:
        _log.info(
            "the run in %s is of an older version; fields that it lacks get their defaults: %s",
            workdir,
            ", ".join(taken),
        )


def fields_that_matter(config: ConfigDict) -> dict[str, Any]:
    """Return the fields that a run's results depend on, by path such as "config.model.width"."""
    fields = flat(_plain(config), "config.")
    return {key: value for key, value in fields.items() if key not in _OPERATIONAL}


def config_digest(config: ConfigDict) -> str:
    """Return the SHA-256, in hexadecimal, of a config as JSON with sorted keys and no spaces."""
    text = json.dumps(_plain(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def check_writable(folder: Path, flag: str = "workdir") -> None:
    """Check that a folder can be written, or created; nothing is written.

    Args:
      folder: the folder to write.
      flag: the flag that named it, for the message.

    Raises:
      UsageError: permission is missing, or there is something else than a folder.
    """
    existing = folder.absolute()
    while not existing.exists():
        if existing.is_symlink():
            raise UsageError(
                f"--{flag}={folder} cannot be written: {existing} is a broken link. Name another"
                " folder."
            )
        existing = existing.parent
    if not existing.is_dir():
        raise UsageError(
            f"--{flag}={folder} cannot be written: {existing} is not a folder. Name another folder."
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(
            f"--{flag}={folder} cannot be written: there is no permission to write in"
            f" {existing}. Fix its permissions, or name another folder."
        )


def claim_workdir(config: ConfigDict, workdir: Path) -> None:
    """Write the run's config, in process 0.

    Raises:
      UsageError: the folder cannot be created or written, or not all processes see it.
    """
    problem = ""
    if is_first_process():
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            text = json.dumps(_plain(config), indent=2) + "\n"
            write_whole(workdir / _CONFIG_FILE, text.encode())
        except (OSError, UsageError) as error:
            problem = f" ({error})"
    written = all_agree(not problem)
    if not (written and all_agree((workdir / _CONFIG_FILE).exists())):
        raise UsageError(
            f"--workdir={workdir} cannot be written{problem}, or not all processes see the files"
            " in it. Name a folder that all of them share, fix its permissions, or free some space."
        )


def _parse(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text())
        if not isinstance(fields, dict):
            raise ValueError("not a table")
        flat(fields)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}. Fix it, or restore it from a copy."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is damaged ({error}); restore it from a copy, or use another workdir."
        ) from None
    return fields


def _plain(config: ConfigDict) -> dict[str, Any]:
    """Return a config as values of JSON."""
    fields = json.loads(config.to_json(sort_keys=True))
    section, name = _ONCE_WHOLE
    value = fields.get(section, {}).get(name)
    if isinstance(value, float) and value.is_integer():
        fields[section][name] = int(value)
    return fields
