"""What the process that others are forked from has done before: imported all, read the digits, hashed the code.

So it has for those that know of the networks of small_networks.py, too.
"""

import os
from pathlib import Path

import fedalg  # noqa: F401
import plotting  # noqa: F401
from fedmerge import provenance
from fedmerge.config.declarations import check_declarations
from fedmerge.config.resolve import resolve
from fedmerge.config.run_name import settings_of
from fedmerge.reporting import run_figures  # noqa: F401
from fedmerge.simulation.experiment import load_splits

DEFAULTS = resolve({})

for plugins in ("", str(Path(__file__).parent / "small_networks.py")):
    os.environ["FEDMERGE_PLUGINS"] = plugins
    check_declarations()
    provenance.code_hash(settings_of(DEFAULTS))
del os.environ["FEDMERGE_PLUGINS"]
load_splits(DEFAULTS)
