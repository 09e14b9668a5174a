"""The configuration's section `init`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dav_ray.strict import Section


class Init(Section):
    run: str | None = Field(
        default=None,
        description="run directory of an earlier run, from whose policy this one starts; default: the pretrained model",
        json_schema_extra={"allowed": "a path or s3://bucket/folder"},
    )
    version: Annotated[int, Field(ge=0, strict=True)] | Literal["best", "last"] = Field(
        default="last",
        description="which policy of that run; best: the highest mean reward without search of those that are kept; "
        "config.yaml keeps its number",
        json_schema_extra={"allowed": "best, last or a version (a whole number >= 0)"},
    )

    @model_validator(mode="after")
    def _of_a_run(self) -> Init:
        if self.run is None and self.version != "last":
            raise ValueError(f"version = {self.version}: of which run? allowed: with init.run only")
        return self
