"""Recipes: a run's configuration as YAML, by name or path, with dotted overrides."""

import difflib
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ...models.common.errors import UserError
from ...models.common.files import write_text
from ...models.common.validation import describe_validation_error, first_line, refuse_resolvers
from ...models.presets import LATEST_VERSION
from .run_config import RunConfig

RECIPES = __name__.rsplit(".", 2)[0]  # the package that has them in `recipes/`


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files(RECIPES).joinpath("recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_config(
    recipe: str | Path, overrides: list[str] | None = None, *, preset_version: int = LATEST_VERSION
) -> RunConfig:
    """Load a recipe by name or a YAML file by path, with dotted overrides such as `train.steps=200`.

    Args:
        preset_version: of the preset, if neither the recipe nor an override names one.

    Raises:
        UserError: no such recipe or file, not YAML, an unknown key, or a value of the wrong type.
    """
    values, origin = load_values(recipe, overrides)
    return parse_config(with_preset_version(values, preset_version), origin)


def with_preset_version(values: Any, version: int = LATEST_VERSION) -> Any:
    """Add the version of the preset to the values of a recipe that names none. Files in run folders mean version 1 where they
    name none."""
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        return values
    return values | {"model": {"preset_version": version} | values["model"]}


def load_values(recipe: str | Path, overrides: list[str] | None = None) -> tuple[Any, str]:
    """The plain values of a recipe with its overrides, not yet validated, and the origin of each; errors as in `load_config`."""
    text, origin = _read_recipe(recipe)
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{origin} is not valid YAML: {first_line(error)}") from error
    return apply_overrides(values, overrides or [], origin), origin


def apply_overrides(values: Any, overrides: list[str], origin: str) -> Any:
    """Plain values with dotted overrides (`train.steps=200`) applied.

    Raises:
        UserError: an override without a value, or one that does not fit the structure.
    """
    for override in overrides:
        if "=" not in override:
            raise UserError(f"override {override!r} has no value: write it as section.key=value, e.g. train.steps=200")
    from omegaconf import OmegaConf  # importing it only here saves a tenth of the time of commands that only read
    from omegaconf.errors import OmegaConfBaseException

    try:
        merged = OmegaConf.merge(OmegaConf.create(values or {}), OmegaConf.from_dotlist(overrides))
        refuse_resolvers(OmegaConf.to_container(merged, resolve=False), origin)
        return OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError) as error:
        raise UserError(f"overrides {' '.join(overrides)} do not fit {origin}: {first_line(error)}") from error


def parse_config(values: Any, origin: str) -> RunConfig:
    """Check plain values against `RunConfig`.

    Raises:
        UserError: naming the key, where it came from and the nearest valid key.
    """
    if not isinstance(values, dict):
        raise UserError(f"{origin} is not a mapping of sections: it must hold {', '.join(RunConfig.model_fields)}")
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{origin}: {describe_validation_error(error, RunConfig)}") from error


def save_config(config: RunConfig, path: Path) -> None:
    """Write the resolved configuration as YAML."""
    write_text(path, yaml.safe_dump(config.resolved(), sort_keys=False))


def _read_recipe(recipe: str | Path) -> tuple[str, str]:
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            return path.read_text(encoding="utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"recipe {path} cannot be read: {first_line(error)}") from error
    if str(recipe) not in recipe_names():
        near = difflib.get_close_matches(str(recipe), recipe_names(), n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}?" if near else f"recipes: {', '.join(recipe_names())}"
        raise UserError(f"there is no recipe or run folder {str(recipe)!r}: {hint} (or name a .yaml file)")
    packaged = resources.files(RECIPES).joinpath("recipes", f"{recipe}.yaml")
    return packaged.read_text(encoding="utf-8"), f"recipe {recipe}"
