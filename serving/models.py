"""The models a server holds, by name. A request names one, or takes the default."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from msgspec import UNSET

from recsys.errors import ConfigError, RequestError, nearest
from serving.config import Limits
from serving.ranker import Ranker
from serving.wire import ModelPin

# Of a name that a caller wrote, this many characters are shown back.
_SHOWN = 128


@dataclass(frozen=True)
class Models:
    """Loaded rankers by name; `default` answers requests that name none."""

    rankers: Mapping[str, Ranker]
    default: str

    @classmethod
    def of(cls, rankers: Iterable[Ranker], *, default: str | None = None) -> "Models":
        """The models of some rankers, the first being the default. Raises ConfigError for none, or for equal names."""
        found: dict[str, Ranker] = {}
        for ranker in rankers:
            if ranker.bundle.name in found:
                raise ConfigError(
                    f"two bundles are named {ranker.bundle.name!r}; export one under another name"
                )
            found[ranker.bundle.name] = ranker
        if not found:
            raise ConfigError("no bundle to serve; name at least one")
        name = default or next(iter(found))
        if name not in found:
            raise ConfigError(f"the default model {name!r} is not loaded{nearest(name, found)}")
        return cls(found, name)

    @classmethod
    def load(cls, paths: Iterable[Path], *, limits: Limits | None = None) -> "Models":
        """The models of published bundles. Raises ArtifactError when one does not verify."""
        return cls.of(Ranker.load(path, limits=limits) for path in paths)

    def named(self, name: str) -> Ranker:
        """The ranker of a name. Raises RequestError UNKNOWN_MODEL."""
        if name not in self.rankers:
            raise RequestError(
                f"no model {name[:_SHOWN]!r}{nearest(name[:_SHOWN], self.rankers)}; see /v1/models",
                pointer="/model/name",
                code="UNKNOWN_MODEL",
            )
        return self.rankers[name]

    def select(self, pin: ModelPin) -> Ranker:
        """The ranker that a request asks for. Raises RequestError UNKNOWN_MODEL or VERSION_NOT_LOADED."""
        ranker = self.named(self.default if pin.name is UNSET else pin.name)
        loaded = ranker.bundle.version
        if pin.version not in (UNSET, loaded):
            raise RequestError(
                f"version {pin.version!r} of {ranker.bundle.name!r} is not loaded; loaded: {loaded}",
                pointer="/model/version",
                code="VERSION_NOT_LOADED",
            )
        return ranker
