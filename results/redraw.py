"""Draw figures and tables of the studies again, by the commands in their READMEs: python results/redraw.py [STUDY ...]

Of what plotting.py makes, a study keeps the files that are in its folder `figures`; add one there, and it is kept, too.
"""

import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).resolve().parent
sys.path.insert(0, str(RESULTS.parent))
import plotting  # noqa: E402


def studies():
    """Return the folders of all studies."""
    return sorted(path.parent for path in RESULTS.glob("*/README.md"))


def draw(study, folder):
    """Draw a study into `folder`, with the flags of plotting.py that its README has; return its exit status."""
    readme = (study / "README.md").read_text()
    flags = re.search(rf"^python plotting\.py (--csv_dir results/{study.name} .*)$", readme, re.M)[1]
    return plotting.program([*shlex.split(flags), "--csv_dir", str(study), "--output_dir", str(folder)])


def main(names):
    for study in studies():
        if names and study.name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            if draw(study, folder):
                sys.exit(f"{study.name}: not everything could be drawn")
            for kept in sorted((study / "figures").iterdir()):
                shutil.copyfile(Path(folder, kept.name), kept)


if __name__ == "__main__":
    main(sys.argv[1:])
