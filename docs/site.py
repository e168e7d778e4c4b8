"""The documentation as a site: `make docs`, or python docs/site.py [FOLDER], by default `site/`.

Its pages are those of the repository, in their folders, so that the links between them hold; what they link to is taken
along. Two pages are made here: a gallery of the studies' figures, and the interface from Python, of its docstrings.
Builds without a network; a link that leads nowhere, or a heading that is not there, ends it with status 1.
"""

import logging
import re
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs/*.md", "benchmarks/*.md")
PAGES += ("results/README.md", "results/*/README.md", "results/*/figures/*.md")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
API = """# From Python

How it is used is in [Python](python.md).

::: fedmerge.api.run

::: fedmerge.api.Run

::: fedmerge.reporting.frames.load_runs

::: fedmerge.reporting.frames.load_rounds

::: fedmerge.reporting.frames.compare

## What an algorithm is made of

::: fedmerge.algorithms.fedavg.FedAvg

::: fedmerge.client_update.ClientUpdate
"""


def gallery():
    """Return the page with the figures of all studies, Markdown."""
    lines = ["# Gallery", "", "Figures of the [studies](../results/README.md), as `plotting.py` draws them.", ""]
    for study in sorted(path.parent for path in ROOT.glob("results/*/README.md")):
        title = (study / "README.md").read_text().partition("\n")[0].removeprefix("# ")
        lines += [f"## {title}", "", f"[{study.name}](../results/{study.name}/README.md)", ""]
        for figure in sorted((study / "figures").glob("*.png")):
            lines += [f"![{study.name}: {figure.stem}](../results/{study.name}/figures/{figure.name})", ""]
    return "\n".join(lines)


def gather(place):
    """Copy all pages, and the files that they link to, into the folder `place`, as they lie in the repository."""
    pages = [page for glob in PAGES for page in ROOT.glob(glob)]
    wanted = {page.relative_to(ROOT) for page in pages}
    for page in pages:
        for link in LINK.findall(page.read_text()):
            target = (page.parent / link).resolve()
            if ":" not in link and target.is_file():
                wanted.add(target.relative_to(ROOT))
    wanted |= {figure.relative_to(ROOT) for figure in ROOT.glob("results/*/figures/*.png")}
    for path in wanted:
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, place / path)
    (place / "docs" / "gallery.md").write_text(gallery())
    (place / "docs" / "api.md").write_text(API)
    for page in place.rglob("*.md"):
        page.write_text(to_files(page.read_text(), page.parent))


def to_files(text, folder):
    """Return a page's text with links to folders as links to the pages in them, where there are any."""

    def link(found):
        there = (folder / found[1] / "README.md").is_file()
        return f"]({found[1].rstrip('/')}/README.md)" if there else found[0]

    return LINK.sub(link, text)


def build(out):
    """Write the site into the folder `out`. Raises what MkDocs does for links that lead nowhere."""
    from mkdocs.commands.build import build as written
    from mkdocs.config import load_config

    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as source:
        gather(Path(source))
        config = load_config(str(ROOT / "mkdocs.yml"), docs_dir=source, site_dir=str(Path(out).resolve()), strict=True)
        written(config)


def main(argv):
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    out = argv[0] if argv else ROOT / "site"
    from mkdocs.exceptions import MkDocsException

    try:
        build(out)
    except MkDocsException as error:
        print(f"site.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"{out}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
