"""JSON schemas of the YAML files that users write, with which editors complete and check keys."""

from typing import Any

from pydantic import TypeAdapter

from ...evals.config import Suite
from ...evals.registry import all_protocols
from ...models import ModelConfig
from ...models.common.config import Config


def json_schema(config: type[Config]) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of YAML files of a configuration class.

    Two classes have another form in YAML than in Python: the model of a recipe takes the keys of a `ModelConfig` beside its
    preset, all of them optional; and the protocols of a suite stand beside its other keys.
    """
    schema = config.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    if "ModelSection" in definitions:
        _add_model_keys(definitions)
    if config is Suite:
        del schema["properties"]["protocols"]
        for protocol in all_protocols().values():
            own = TypeAdapter(protocol.config).json_schema(ref_template="#/$defs/{model}")
            definitions |= own.pop("$defs", {})
            schema["properties"][protocol.name] = own
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _add_model_keys(definitions: dict[str, Any]) -> None:
    model = ModelConfig.model_json_schema()
    for part in (model, *model["$defs"].values()):
        part.pop("required", None)
    definitions |= model["$defs"]
    section = definitions["ModelSection"]
    section["properties"] |= {
        name: own for name, own in model["properties"].items() if name not in ("name", "vocab_size")
    }
    section["additionalProperties"] = False
