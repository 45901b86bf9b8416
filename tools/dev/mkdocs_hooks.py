"""MkDocs hooks and a Griffe extension for the documentation site.

README, CONTRIBUTING and the pages of configs/ and benchmarks/ are outside docs/. On the
site every page keeps its path in the repository, so a relative link works in both
places.
"""

import re
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    '*.md',
    'CITATION.cff',
    'docs/**/*.*',
    'configs/**/README.md',
    'benchmarks/README.md',
    'benchmarks/results/*.md',
    'benchmarks/results/*.png',
)
# The second word of an info string is for tests/test_docs.py.
FENCE = re.compile(r'^```(\w+) (\w+)$', re.MULTILINE)
MODULE_LINK = re.compile(r'\]\((?:\.\./)*(agvm_mm/[\w/]+)\.py\)')
ROLE = re.compile(r':\w+:`~?\.?([\w.]+)`')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ with those of the repository."""
    theme = [file for file in files if file.src_dir != config.docs_dir]
    paths = sorted({path for name in SOURCES for path in ROOT.glob(name)})
    pages = [
        File(
            path.relative_to(ROOT).as_posix(),
            str(ROOT),
            config.site_dir,
            config.use_directory_urls,
        )
        for path in paths
    ]
    return Files([*theme, *pages])


def on_page_markdown(markdown: str, **_) -> str:
    """Return a page's Markdown with the syntax that the site needs."""

    def fence(match: re.Match) -> str:
        # Messages are long lines.
        return '```{ .text .wrap }' if match[2] == 'message' else f'```{match[1]}'

    def module_link(match: re.Match) -> str:
        return f'][{match[1].replace("/", ".")}]'

    return MODULE_LINK.sub(module_link, FENCE.sub(fence, markdown))


class SphinxRoles(griffe.Extension):
    """Griffe extension that turns Sphinx roles in docstrings into links."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        """Replace roles such as :class:`Name` in the docstring of an object."""
        if obj.docstring is None:
            return

        def link(match: re.Match) -> str:
            try:
                target = obj.resolve(match[1])
            except griffe.NameResolutionError:
                target = match[1]
            # Optional: an object without a docstring has no entry to link to.
            return (
                f'<autoref optional identifier="{target}">'
                f'<code>{match[1]}</code></autoref>'
            )

        obj.docstring.value = ROLE.sub(link, obj.docstring.value)
