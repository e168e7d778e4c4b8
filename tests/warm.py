"""What the process that others are forked from has done before: imported all, read the digits, hashed the code."""

import fedalg  # noqa: F401
import plotting  # noqa: F401
from fedmerge import provenance
from fedmerge.config.resolve import resolve
from fedmerge.config.run_name import settings_of
from fedmerge.registry import SHELVES, specs
from fedmerge.reporting import run_figures  # noqa: F401
from fedmerge.simulation.experiment import load_splits

DEFAULTS = resolve({})

for shelf in SHELVES:
    specs(shelf)
provenance.code_hash(settings_of(DEFAULTS))
load_splits(DEFAULTS)
