"""The section `report`."""

from pydantic import Field

from pipeline.settings.base import Settings


class ReportSettings(Settings):
    """What the report, the summary and comments may show."""

    publish_texts: bool = Field(
        default=True,
        description="Whether texts of the data are shown, as those whose answer flipped; false: their ids.",
    )
