"""Files into a running server: read in blocks, mapped, posted, resumable, and counted once however often it is run."""

from analytics_core.importing.mapping import ABSENT, Mapping, Wanted
from analytics_core.importing.progress import Progress
from analytics_core.importing.run import FileImport, Summary
from analytics_core.importing.sending import Rejection

__all__ = ["ABSENT", "FileImport", "Mapping", "Progress", "Rejection", "Summary", "Wanted"]
