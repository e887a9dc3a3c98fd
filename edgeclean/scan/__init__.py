"""Data-free backdoor detection with evidence: see `edgeclean.scan.scan`."""

from edgeclean.scan.report import ScanReport, SearchRecord, Suspect, Verdict
from edgeclean.scan.scan import ScanSettings, scan

__all__ = ["ScanReport", "ScanSettings", "SearchRecord", "Suspect", "Verdict", "scan"]
