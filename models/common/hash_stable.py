"""Fields that came later: stored only where they are used, so that what is older keeps its ids."""

from typing import Any, ClassVar

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer


class LaterFields(BaseModel):
    """A section of a configuration that leaves the fields of `later` out of what it is stored as where they have their default."""

    later: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unused = [name for name in self.later if getattr(self, name) == type(self).model_fields[name].default]
        return {name: value for name, value in serialize(self).items() if name not in unused}
