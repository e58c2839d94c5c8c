"""The base classes of all typed data: `Config` for what people write, `Record` for what the program writes.

Both are immutable and refuse unknown keys. `identity_dump`, the one place where a hash is kept from changing, gives the values
that are hashed into an identity; they stay the same when fields are added or renamed.
"""

from collections.abc import Iterable
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


class Record(BaseModel):
    """Base class of data that the program writes and reads again: a plan, a manifest, a result.

    It has a base of its own since it is stored in full: a file states every field, so none is left out for being at its default,
    and no key has an old spelling.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def identity_dump(self, exclude: Iterable[str] = (), *, defaults: bool = True) -> dict[str, Any]:
        """The plain values from which an identity hash is computed.

        Args:
            exclude: fields that do not belong to the identity.
            defaults: False leaves out every field that has its default value, so that fields may be added later.
        """
        return self.model_dump(mode="json", context=_IDENTITY, exclude=set(exclude), exclude_defaults=not defaults)


class Config(Record):
    """Base class of a section of a configuration. Each field is described by the string below it (docs/reference/config.md
    shows them).

    Attributes:
        added: fields that are younger than files of the class; they are stored only where they differ from their defaults, so that
            older configurations keep their hashes.
        renamed: the entry of `renamed_keys.RENAMED` for this class, if keys of it were renamed; they are read under both names,
            and hashed under the first.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    added: ClassVar[tuple[str, ...]] = ()
    renamed: ClassVar[str | None] = None

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
