"""Options of an export: which runs, and which files."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lmconsole.report.document import Template
    from lmconsole.report.draw import ImageFormat

FileFormat = Literal["markdown", "latex", "html", "csv", "json", "parquet", "tensorboard", "all"]
DataFormat = Literal["csv", "json", "parquet"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """Runs to export, and formats of the files."""

    file_format: FileFormat = "all"
    figure_format: "ImageFormat" = "png"
    """Format of the figures in addition to PNG."""
    preset: str | None = None
    run: str | None = None
    imported: bool | None = None
    against: str | None = None
    """``published``, ``imported``, or the folder of another store."""
    siunitx: bool = False
    template: "Template | None" = None
    """Template of the report; by default the one that fits the runs."""
