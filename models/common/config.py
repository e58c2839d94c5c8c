"""The base class of configurations: immutable, no unknown keys, old spellings read, identities that do not change."""

from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from .renamed_keys import with_new_keys, with_old_keys

PositiveInts = Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]

_IDENTITY = {"identity": True}


class Config(BaseModel):
    """A section of a configuration.

    Attributes:
        added: fields that are younger than files of the class; they are stored only where they differ from their defaults, so that
            older configurations keep their hashes.
        renamed: the entry of `renamed_keys.RENAMED` for this class, if keys of it were renamed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    added: ClassVar[tuple[str, ...]] = ()
    renamed: ClassVar[str | None] = None

    def identity_dump(self, **options: Any) -> dict[str, Any]:
        """Plain values for identity hashes, with renamed keys under their first names."""
        return self.model_dump(mode="json", context=_IDENTITY, **options)

    @model_validator(mode="before")
    @classmethod
    def _read_old_keys(cls, values: Any) -> Any:
        return with_new_keys(cls.renamed, values) if cls.renamed and isinstance(values, dict) else values

    @model_serializer(mode="wrap")
    def _leave_out_added_defaults(
        self, serialize: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        unused = [name for name in self.added if getattr(self, name) == type(self).model_fields[name].default]
        values = {name: value for name, value in serialize(self).items() if name not in unused}
        return with_old_keys(self.renamed, values) if self.renamed and info.context == _IDENTITY else values
