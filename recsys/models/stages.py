"""What the stages of a program have in common, and how a configuration section names one of them.

A stage is an `nn.Module` with a `Config` of its own, whose `kind` is its name in the registry.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from recsys import config

# Widths of an MLP's layers.
Hidden = tuple[Annotated[int, Field(ge=1)], ...]
# Levels of experts, each of one layer at least.
Levels = Annotated[tuple[Annotated[Hidden, Field(min_length=1)], ...], Field(min_length=1)]


class StageConfig(config.Config):
    """The base of every stage's section."""

    kind: str


@dataclass(frozen=True)
class OneOf:
    """Marks a field as the section of one stage in a registry: `kind` names it, its `Config` says what else is known.

    Use as `Annotated[StageConfig, OneOf(registry)]`.
    """

    registry: Mapping[str, Any]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        choices: dict[Any, CoreSchema] = {
            kind: handler.generate_schema(stage.Config) for kind, stage in self.registry.items()
        }
        return core_schema.tagged_union_schema(choices, discriminator=_kind)


def _kind(section: Any) -> str:
    # A section without a kind is refused as the unknown kind "", and the message lists the known ones.
    found = (
        section.get("kind", "") if isinstance(section, Mapping) else getattr(section, "kind", "")
    )
    return str(found)
