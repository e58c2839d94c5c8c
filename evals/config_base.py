"""The base class and the types that configurations of evaluations share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInts = Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]


class Frozen(BaseModel):
    """An immutable configuration that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
