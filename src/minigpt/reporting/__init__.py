"""Looking back on a run, and at its data: pages that open from disk with no network. Importing it imports no torch."""

from minigpt.reporting.write import report_at_end, require_place, write_data_page, write_report

__all__ = ["report_at_end", "require_place", "write_data_page", "write_report"]
