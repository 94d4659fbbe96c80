"""Base of every part of a profile: what a section allows, before any section exists."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Frozen, and no key that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
