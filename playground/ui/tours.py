"""The guided tours that ship with the playground: recorded runs of the bundled models, with captions."""

import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from playground.sessions.run_file import SUFFIX, RunFileError, Tour, unpack
from playground.sessions.run_records import RecordedRun

TOURS = Path(__file__).resolve().parents[2] / "assets" / "tours"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TourRun:
    """One tour, ready to be played."""

    tour: Tour
    run: RecordedRun


@cache
def tours(folder: Path = TOURS) -> dict[str, TourRun]:
    """All tours by name, in the order of their files; one that cannot be read is left out."""
    found: dict[str, TourRun] = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            run, tour = unpack(path.read_bytes())
        except (OSError, RunFileError) as error:
            logger.warning("The tour %s is left out: %s", path.name, error)
            continue
        if tour is not None:
            found[tour.name] = TourRun(tour, run)
    return found
