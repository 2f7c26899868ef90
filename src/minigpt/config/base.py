"""What every section of the config shares: strict fields whose docstrings become their help text."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the config tree. Unknown keys and wrong types are errors; values never change after validation."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
