"""Looking back on a run: the report, a page that opens from disk with no network. Importing it imports no torch."""

from minigpt.reporting.write import report_at_end, write_report

__all__ = ["report_at_end", "write_report"]
