"""Recipes that say only how to prepare a dataset, for `echo-lm prepare` and `echo-lm data`."""

from pathlib import Path

from pydantic import ValidationError

from ...data_prep.config import DatasetConfig
from ...models.common.config import Config
from ...models.common.errors import UserError
from ...models.common.validation import describe_validation_error
from ...pipeline.config import load_values


class DataRecipe(Config):
    """A recipe with the section `data` alone."""

    name: str | None = None
    """Name of the recipe; of no effect, since nothing is trained."""
    data: DatasetConfig
    """The dataset to prepare."""


def load_data_recipe(recipe: str | Path, overrides: list[str] | None = None) -> DatasetConfig | None:
    """The dataset of a recipe without sections on training; None if it has such sections.

    Raises:
        UserError: no such recipe or file, not YAML, an unknown key, or a value of the wrong type.
    """
    values, origin = load_values(recipe, overrides)
    if not isinstance(values, dict) or "data" not in values or not values.keys() <= DataRecipe.model_fields.keys():
        return None
    try:
        return DataRecipe.model_validate(values).data
    except ValidationError as error:
        raise UserError(f"{origin}: {describe_validation_error(error, DataRecipe)}") from error
