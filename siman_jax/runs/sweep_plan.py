"""Sweeps: grids of runs, defined by the files in configs/sweeps/."""

import ast
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from siman_jax.errors import UsageError
from siman_jax.field_names import RUN_FIELDS, expected, find_field
from siman_jax.outside import describe


@dataclass(frozen=True)
class Sweep:
    """A grid of runs: variants of one config, each with several seeds.

    Attributes:
      name: name of the sweep; its folder accepts no other sweep.
      base: config of all runs.
      variants: fields that each variant changes, such as "model.weight_rule", with their values;
        the name of a variant is also the name of its folder. In `field_names.RUN_FIELDS`, the name
        of an earlier variant means its run with the same seed.
      seeds: seeds of every variant.
    """

    name: str
    base: ConfigDict
    variants: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]

    def runs(self, variant: str, folder: Path) -> dict[Path, ConfigDict]:
        """Return the configs of a variant's runs by folder, FOLDER/VARIANT/seedN, by seed."""
        fields = self.variants[variant]
        sources = {name: fields[name] for name in RUN_FIELDS if fields.get(name) in self.variants}
        config = with_fields(self.base, fields)

        def with_seed(seed: int) -> ConfigDict:
            # Absolute, so that the same run goes on from any working folder.
            runs = {
                field: str(folder.absolute() / source / f"seed{seed}")
                for field, source in sources.items()
            }
            return with_fields(config, {**runs, "seed": seed})

        return {folder / variant / f"seed{seed}": with_seed(seed) for seed in self.seeds}


def load_sweep(path: Path) -> Sweep:
    """Load a sweep by calling `get_sweep()` of a Python file.

    Raises:
      UsageError: there is no such file or function, the function fails, or its sweep cannot be run.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UsageError(f"there is no sweep {path}; an example is configs/sweeps/digits.py.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_sweep"):
            raise UsageError(
                f"{path} defines no get_sweep(); expected a function that returns a"
                " siman_jax.runs.sweep_plan.Sweep, as in configs/sweeps/digits.py."
            )
        sweep = module.get_sweep()
    except UsageError:
        raise
    except Exception as error:  # the file may raise any error
        raise UsageError(f"cannot use {path}: {describe(error, path.stem)}.") from error
    if not isinstance(sweep, Sweep):
        raise UsageError(
            f"get_sweep() of {path} returned {type(sweep).__name__}; expected a"
            " siman_jax.runs.sweep_plan.Sweep."
        )
    _check(sweep, path)
    return sweep


def with_settings(sweep: Sweep, settings: Iterable[str]) -> Sweep:
    """Set fields of the base config.

    Args:
      sweep: the sweep to copy.
      settings: texts "FIELD=VALUE".

    Raises:
      UsageError: a field is unknown, its value cannot be used, or a variant sets the field.
    """
    base = sweep.base
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set={setting} has no value; write --set=FIELD=VALUE.")
        own = [name for name, fields in sweep.variants.items() if field in fields]
        if field == "seed" or own:
            raise UsageError(
                f"--set={setting} cannot hold for all runs: "
                + ("each has its own seed." if field == "seed" else f"{own[0]} sets it itself.")
            )
        base = with_fields(base, {field: _value(base, field, text)})
    return replace(sweep, base=base)


def with_fields(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
    """Copy a config, set some fields, and lock it.

    Args:
      config: the config to copy.
      fields: new values by dotted names, such as "optimizer.learning_rate".

    Raises:
      UsageError: a field does not exist, or has another type.

    >>> with_fields(ConfigDict({"model": {"width": 16}}), {"model.widht": 4})
    Traceback (most recent call last):
    siman_jax.errors.UsageError: unknown config field 'model.widht'; did you mean 'model.width'? ...
    """
    changed = config.copy_and_resolve_references().unlock()
    for field, value in fields.items():
        current = find_field(config, field)
        try:
            changed.update_from_flattened_dict({field: value})
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"the config field {field} cannot be {value!r}; {expected(current)}."
            ) from error
    return changed.lock()


def _value(config: ConfigDict, field: str, text: str) -> Any:
    current = find_field(config, field)
    if isinstance(current, str):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise UsageError(
            f"--set={field}={text} is not a Python value; an example is --set={field}={current!r}."
        ) from error


def _check(sweep: Sweep, path: Path) -> None:
    if not sweep.variants or not sweep.seeds:
        raise UsageError(f"{path} defines no run; it needs at least one variant and one seed.")
    if len(set(sweep.seeds)) < len(sweep.seeds):
        raise UsageError(f"{path} contains a seed twice: {sweep.seeds}.")
    for seed in sweep.seeds:
        if not 0 <= seed < 2**32:
            raise UsageError(f"{path} contains the seed {seed}; seeds are from 0 to 2**32 - 1.")
    for name, fields in sweep.variants.items():
        if not name or Path(name).name != name or name.startswith("."):
            raise UsageError(f"{path}: the variant {name!r} cannot be the name of a folder.")
        if "seed" in fields:
            raise UsageError(
                f"{path}: the variant {name!r} sets the seed; set the sweep's seeds instead."
            )
        with_fields(sweep.base, fields)
        _check_sources(sweep, name, path)


def _check_sources(sweep: Sweep, name: str, path: Path) -> None:
    """Check that a variant takes other variants' runs only if these are trained before."""
    earlier = list(sweep.variants)[: list(sweep.variants).index(name)]
    for field in RUN_FIELDS:
        source = sweep.variants[name].get(field)
        if source in sweep.variants and source not in earlier:
            raise UsageError(
                f"{path}: the variant {name!r} needs the runs of {source!r} in {field}, which does"
                " not come before it; change the order."
            )
