"""The folder of a run, which belongs to one config."""

import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from siman_jax.devices.mesh import all_agree, is_first_process
from siman_jax.errors import UsageError
from siman_jax.output import write_whole
from siman_jax.training.config_fields import faults_of_stored, flat

_CONFIG_FILE = "config.json"
_MOST_FAULTS = 5  # to name in a message
# A run may go on with other values of these: no number depends on them but by rounding, if folders
# that moved hold what they held.
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

# Fields that configs did not always have, with the values that make a run go on as it began: of
# every config, of those whose data are image files, and by source of the data, of those whose data
# are in memory.
_ADDED: dict[str, Any] = {
    "config.accumulation_steps": 1,
    "config.measure_kernels": False,
    "config.batch_norm_devices": 0,
    "config.native": True,
    "config.shard_optimizer": False,
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
_ADDED_FILES: dict[str, Any] = {"config.data.background": 0, "config.data.exif_orientation": False}
_IN_MEMORY: dict[str, Any] = {"config.data.train_examples": 0, "config.data.resident": True}
_ADDED_DATA: dict[str, dict[str, Any]] = {
    "digits": _IN_MEMORY,
    "tfds": _IN_MEMORY,
    "image_folder": {
        "config.data.train_split": "train",
        "config.data.test_split": "test",
        **_IN_MEMORY,
    },
}
_log = logging.getLogger(__name__)


def default_workdir(config: str) -> Path:
    """Folder of a run that was given none.

    Args:
      config: value of `--config`: the config's file, and its variant behind a colon.

    >>> print(default_workdir("configs/digits.py"), default_workdir("configs/cifar10.py:resnet18"))
    runs/digits runs/cifar10-resnet18
    """
    file, _, variant = config.partition(":")
    names = [Path(file).stem, *re.findall(r"[\w.=]+", variant)]
    return Path("runs") / "-".join(names)


def check_workdir(config: ConfigDict, workdir: Path) -> None:
    """Refuse a folder that holds the run of another config; nothing is written.

    Raises:
      UsageError: with each field that differs; or the folder's name is no text.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"--workdir={workdir} is a file; name a folder.")
    if any("\ud800" <= char <= "\udfff" for char in str(workdir.absolute())):
        raise UsageError(
            f"--workdir={workdir}: its name is not UTF-8 text, as checkpoints need it; name another"
            " folder."
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
            + "\nGo on with its own config, or name another --workdir."
        )
    _log_added(added, workdir)


def read_config(workdir: Path) -> ConfigDict:
    """Read the config of the run in `workdir`; fields that an older version lacks get defaults.

    Raises:
      UsageError: there is none, or it is damaged, or of a version too old.
    """
    path = workdir / _CONFIG_FILE
    if not path.is_file():
        raise UsageError(f"there is no run in {workdir}: expected its {_CONFIG_FILE}.")
    fields = _parse(path)
    faults = faults_of_stored(flat(fields))
    if faults:
        raise UsageError(
            f"{path} is damaged, or of another version: {'; '.join(faults[:_MOST_FAULTS])}"
            f"{' ...' if len(faults) > _MOST_FAULTS else ''}. Restore it, or use the version that"
            " wrote it."
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
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # names it does not take
        raise UsageError(f"{path} is damaged: {error}") from None


def _added(saved: dict[str, Any]) -> dict[str, Any]:
    """Fields that a saved config lacks since an older version wrote it, with their defaults."""
    added, source = _ADDED, str(saved.get("config.data.source"))
    if source in ("tfds", "image_folder"):
        added = added | _ADDED_FILES
    if "config.data.workers" not in saved:
        added = added | _ADDED_DATA.get(source, {})
    return {key: value for key, value in added.items() if key not in saved}


def _log_added(added: dict[str, Any], workdir: Path) -> None:
    """Log which fields a run of an older version lacks and so takes the defaults of."""
    taken = [f"{key}={value}" for key, value in added.items() if key not in _OPERATIONAL]
    if taken:
        _log.info(
            "the run in %s is of an older version; fields that are new since then take their"
            " defaults: %s",
            workdir,
            ", ".join(taken),
        )


def fields_that_matter(config: ConfigDict) -> dict[str, Any]:
    """The fields that a run's numbers depend on, by path such as "config.model.width"."""
    fields = flat(_plain(config), "config.")
    return {key: value for key, value in fields.items() if key not in _OPERATIONAL}


def config_digest(config: ConfigDict) -> str:
    """SHA-256 of a config as JSON with sorted keys and no spaces, in hexadecimal digits."""
    text = json.dumps(_plain(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def check_writable(folder: Path, flag: str = "workdir") -> None:
    """Refuse a folder that this user may not write in, or make; nothing is written.

    Args:
      folder: to be written.
      flag: that named it, for the message.

    Raises:
      UsageError: with the folder that lacks the permission, or what is there instead of a folder.
    """
    existing = folder.absolute()
    while not existing.exists():
        if existing.is_symlink():
            raise UsageError(
                f"--{flag}={folder} cannot be written: {existing} is a link to what is not there."
                " Name another folder."
            )
        existing = existing.parent
    if not existing.is_dir():
        raise UsageError(
            f"--{flag}={folder} cannot be written: {existing} is no folder. Name another."
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(
            f"--{flag}={folder} cannot be written: there is no permission to write in"
            f" {existing}. Mend its permissions, or name another folder."
        )


def claim_workdir(config: ConfigDict, workdir: Path) -> None:
    """Write the config whole or not at all; of several processes, the first one does.

    Raises:
      UsageError: the folder cannot be made or written, or not all processes see it.
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
            f"--workdir={workdir} cannot be written{problem}, or not all processes see what the"
            " first one writes there. Name a folder that all of them share, mend its permissions,"
            " or make room."
        )


def _parse(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text())
        if not isinstance(fields, dict):
            raise ValueError("no table")
        flat(fields)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is damaged ({error}); restore it, or use another workdir."
        ) from None
    return fields


def _plain(config: ConfigDict) -> dict[str, Any]:
    return json.loads(config.to_json(sort_keys=True))
