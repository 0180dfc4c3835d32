"""What an operator may set."""

from pydantic import Field

from recsys.config import Config


class Limits(Config):
    """Sizes beyond which a request is refused with 413."""

    max_candidates: int = Field(default=2000, ge=1)
    max_list_length: int = Field(default=10_000, ge=1)


class ServiceConfig(Config):
    """Limits on a request before it is parsed, and the inference threads; none named means one a core."""

    max_body_bytes: int = Field(default=4 * 2**20, ge=1)
    body_timeout_seconds: float = Field(default=10.0, gt=0)
    threads: int | None = Field(default=None, ge=1)
