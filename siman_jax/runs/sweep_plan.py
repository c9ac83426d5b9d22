"""A sweep: which runs a file in configs/sweeps/ asks for, each with its own config and folder."""

import ast
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from siman_jax.errors import UsageError, choose


@dataclass(frozen=True)
class Sweep:
    """A grid of runs: variants of one config, each of them with several seeds.

    Attributes:
      name: of the study; its folder belongs to it.
      base: config of all runs, but for what variants and seeds set.
      variants: what each sets, values by fields such as "model.weight_rule"; its name is that of a
        folder.
      seeds: of every variant.
    """

    name: str
    base: ConfigDict
    variants: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]

    def runs(self, variant: str, folder: Path) -> dict[Path, ConfigDict]:
        """Configs of a variant's runs by their folders, FOLDER/VARIANT/seedN, in order of seeds."""
        config = with_fields(self.base, self.variants[variant])
        return {
            folder / variant / f"seed{seed}": with_fields(config, {"seed": seed})
            for seed in self.seeds
        }


def load_sweep(path: Path) -> Sweep:
    """Call `get_sweep()` of a Python file.

    Raises:
      UsageError: there is no such file or function, it fails, or what it gives is no sweep that
        could be run.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UsageError(f"there is no sweep {path}; an example is configs/sweeps/digits.py.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        sweep = module.get_sweep()
    except UsageError:
        raise
    except Exception as error:  # whatever the file raises
        raise UsageError(f"cannot use {path}: {type(error).__name__}: {error}") from error
    if not isinstance(sweep, Sweep):
        raise UsageError(f"get_sweep() of {path} gives a {type(sweep).__name__}, not a Sweep.")
    _check(sweep, path)
    return sweep


def with_settings(sweep: Sweep, settings: Iterable[str]) -> Sweep:
    """Set fields of the base config, each given as "FIELD=VALUE".

    Raises:
      UsageError: a field is unknown, its value of no use, or set by a variant itself.
    """
    base = sweep.base
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set={setting} has no value; write --set=FIELD=VALUE.")
        own = [name for name, fields in sweep.variants.items() if field in fields]
        if field == "seed" or own:
            raise UsageError(
                f"--set={setting} is not for all runs: "
                + ("each has its own seed." if field == "seed" else f"{own[0]} sets it itself.")
            )
        base = with_fields(base, {field: _value(base, field, text)})
    return replace(sweep, base=base)


def with_fields(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
    """Copy a config with other values of some fields, and lock it.

    Args:
      config: any.
      fields: values by dotted names, such as "optimizer.learning_rate".

    Raises:
      UsageError: there is no such field, or its values are of another type.

    >>> with_fields(ConfigDict({"model": {"width": 16}}), {"model.widht": 4})
    Traceback (most recent call last):
    siman_jax.errors.UsageError: unknown config field 'model.widht'; did you mean 'model.width'? ...
    """
    changed = config.copy_and_resolve_references().unlock()
    for field, value in fields.items():
        choose(_flat(config), field, "config field")
        try:
            changed.update_from_flattened_dict({field: value})
        except (TypeError, ValueError) as error:
            raise UsageError(f"the config field {field} cannot be {value!r}: {error}") from error
    return changed.lock()


def _value(config: ConfigDict, field: str, text: str) -> Any:
    current = choose(_flat(config), field, "config field")
    if isinstance(current, str):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise UsageError(
            f"--set={field}={text} is no Python value; an example is --set={field}={current!r}."
        ) from error


def _flat(config: ConfigDict) -> dict[str, Any]:
    return flatten_dict(config.to_dict(), sep=".")


def _check(sweep: Sweep, path: Path) -> None:
    if not sweep.variants or not sweep.seeds:
        raise UsageError(f"{path} asks for no run: it needs at least one variant and one seed.")
    if len(set(sweep.seeds)) < len(sweep.seeds):
        raise UsageError(f"{path} names a seed twice: {sweep.seeds}.")
    for seed in sweep.seeds:
        if not 0 <= seed < 2**32:
            raise UsageError(f"{path} names the seed {seed}; seeds are from 0 to 2**32 - 1.")
    for name, fields in sweep.variants.items():
        if not name or Path(name).name != name or name.startswith("."):
            raise UsageError(f"{path}: the variant {name!r} cannot be the name of a folder.")
        if "seed" in fields:
            raise UsageError(f"{path}: the variant {name!r} sets the seed; seeds are the sweep's.")
        with_fields(sweep.base, fields)
