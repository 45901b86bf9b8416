"""README, docs and the other pages: code blocks, links, the code map and the site.

The info string of a fenced block says how it is checked:

- ``python``: run, all blocks of a page in one namespace;
- ``python config``: lines for a config, added to a stock config of MMDetection (or to
  the ``_base_`` that they name); the objects that they define are built;
- ``python pure``: a config in pure Python on a base of that kind, ``.base``;
- ``bash``: files and options of each command are checked; cheap commands are run;
- ``text output``: the exact output of the block above;
- ``text message``: an error or log message that the code can print;
- ``text``: not checked.
"""

import argparse
import ast
import copy
import inspect
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections import defaultdict
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock
from urllib.parse import unquote

import pytest
import torch
import yaml
from cases import for_each
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import (
    HOOKS,
    LOOPS,
    MODELS,
    OPTIM_WRAPPERS,
    PARAM_SCHEDULERS,
    init_default_scope,
)
from mmengine.runner import Runner
from packaging.requirements import Requirement
from toy import ToyDetector

import agvm_mm
import gpu_check.__main__
from agvm_mm import doctor

ROOT = Path(__file__).parent.parent
README = ROOT / 'README.md'
PAGES = [
    README,
    ROOT / 'CONTRIBUTING.md',
    ROOT / 'benchmarks/README.md',
    *sorted((ROOT / 'configs').glob('**/README.md')),
    *sorted((ROOT / 'docs').glob('*.md')),
]
STOCK = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
KINDS = {
    'python',
    'python config',
    'python pure',
    'bash',
    'text',
    'text output',
    'text message',
}
# These print the same everywhere, within seconds.
CHEAP = {'tools/plan.py', 'benchmarks/paper_tables.py'}
# Not ours; only the packages and targets in their arguments are checked.
FOREIGN = {'git', 'cd', 'ln', 'mkdir', 'mim', 'pip', 'export'}
PLACEHOLDER = re.compile(r'[A-Z][A-Z_]+')


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    kind: str
    text: str

    def __str__(self):
        return f'{self.page.relative_to(ROOT)}:{self.line}'


@lru_cache
def blocks_of(page: Path) -> tuple[Block, ...]:
    """Return the fenced blocks of a page."""
    found, opened = [], None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if not line.startswith('```'):
            if opened:
                opened[2].append(line)
        elif opened is None:
            opened = (number, line[3:].strip(), [])
        else:
            start, kind, lines = opened
            if page == README and kind == 'python':
                kind = 'python config'
            found.append(Block(page, start, kind, '\n'.join(lines) + '\n'))
            opened = None
    assert opened is None, f'{page}:{opened[0]} is not closed'
    return tuple(found)


def blocks(*kinds: str) -> list[Block]:
    return [b for page in PAGES for b in blocks_of(page) if b.kind in kinds]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def outside_blocks(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r'^```.*?^```$', '', page.read_text(), flags=re.DOTALL | re.M)


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    kept = re.sub(r'[^\w\- ]', '', heading.strip().lower())
    return kept.replace(' ', '-')


# ---------------------------------------------------------------- all pages


def check_links_and_kinds(page):
    for block in blocks_of(page):
        assert block.kind in KINDS, f'{block}: unknown kind {block.kind!r}'
    text = outside_blocks(page)
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if target.startswith(('http://', 'https://')):
            continue
        path, _, anchor = target.partition('#')
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f'{page.name} links {target}'
        if anchor:
            headings = re.findall(r'^#+ (.*)$', outside_blocks(linked), re.M)
            assert anchor in map(slug, headings), f'{page.name} links {target}'
    for quoted in re.findall(r'`([^`\n]+)`', text):
        is_path = re.fullmatch(
            r'(agvm_mm|benchmarks|configs|docs|tests|tools)/[\w./-]+', quoted
        )
        if is_path and not re.search(r'[A-Z]{3}', quoted):
            assert (ROOT / quoted).exists(), f'{page.name} names {quoted}'


def test_links_and_paths_exist_and_blocks_have_a_known_kind(subtests):
    for page in PAGES:
        with subtests.test(page=page):
            check_links_and_kinds(page)


def test_index_lists_every_page_once():
    index = (ROOT / 'docs/README.md').read_text()
    pages = sorted(p.name for p in (ROOT / 'docs').glob('*.md'))
    pages.remove('README.md')
    assert sorted(re.findall(r'\]\((\w+\.md)\)', index)) == pages


def test_code_map_names_every_file_of_the_package():
    text = (ROOT / 'CONTRIBUTING.md').read_text()
    section = text.split('## Map of the code')[1].split('\n## ')[0]
    named = re.findall(r'^\| `([^`]+)` \|', section, re.M)
    assert len(named) == len(set(named))
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / 'agvm_mm').rglob('*.py')
        # The __init__.py of a subpackage may only re-export.
        if path.name != '__init__.py' or 'def ' in path.read_text()
    }
    assert not files - set(named)


def test_citation_and_changelog_are_of_this_version():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['cff-version'] == '1.2.0'
    assert {'title', 'message', 'authors', 'preferred-citation'} <= citation.keys()
    assert citation['version'] == agvm_mm.__version__
    headings = re.findall(r'^## (\S+)', (ROOT / 'CHANGELOG.md').read_text(), re.M)
    versions = [heading for heading in headings if heading != 'Unreleased']
    assert agvm_mm.__version__ == versions[0]


# ------------------------------------------------------------ python, output


def pages_with_python():
    return [p for p in PAGES if any(b.kind == 'python' for b in blocks_of(p))]


@pytest.mark.parametrize('page', pages_with_python(), ids=name_of)
def test_python_runs_and_prints_what_is_shown(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace, printed = {'__name__': 'docs'}, None
    for block in blocks_of(page):
        if block.kind != 'text output':
            printed = None
        if block.kind == 'python':
            # With the line numbers of the page, for tracebacks.
            code = compile('\n' * block.line + block.text, str(block), 'exec')
            with redirect_stdout(io.StringIO()) as output:
                exec(code, namespace)
            printed = output.getvalue()
        elif printed is not None:
            assert printed == block.text, str(block)


# ------------------------------------------------------------------- configs


@lru_cache
def stock_network(base: str):
    """Build the network of a stock config."""
    return network(read_config(base, '').model)


def read_config(base: str, lines: str) -> Config:
    """Read a config with more lines added to it."""
    base = str(ROOT / base) if base.startswith('configs') else base
    return Config.fromstring(f'_base_ = {base!r}\n{lines}', '.py')


def network(settings):
    """Build the network of a config without downloading weights."""
    import mmdet.models  # noqa: F401
    import mmseg.models  # noqa: F401

    settings = copy.deepcopy(settings)
    settings.backbone.init_cfg = None
    settings.pop('pretrained', None)
    return MODELS.build(settings)


def check_lines(block):
    named = re.search(r"^_base_ = '([^']+)'\n", block.text, re.M)
    lines = block.text.replace(named[0], '') if named else block.text
    base = named[1] if named else STOCK
    config = read_config(base, lines)
    assigned = [n for n in ast.parse(lines).body if isinstance(n, ast.Assign)]
    names = {target.id for node in assigned for target in node.targets}
    assert names, f'{block} sets nothing'
    init_default_scope(config.default_scope)
    if 'optim_wrapper' in names or 'model' in names:
        known = 'model' not in names
        model = stock_network(base) if known else network(config.model)
        build_wrapper(config.optim_wrapper, model)
    for settings in config.custom_hooks if 'custom_hooks' in names else ():
        HOOKS.build(dict(settings))
    if 'default_hooks' in names:
        stock = read_config(base, '').default_hooks
        for name, settings in config.default_hooks.items():
            if settings != stock.get(name):
                HOOKS.build(dict(settings))
    if 'train_cfg' in names:
        check_loop(config.train_cfg)
    for settings in config.param_scheduler if 'param_scheduler' in names else ():
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        more = dict(optimizer=optimizer)
        if settings.get('convert_to_iter_based'):
            more['epoch_length'] = 10
        PARAM_SCHEDULERS.build(dict(settings), default_args=more)


def test_lines_for_a_config_build(subtests):
    for block in blocks('python config'):
        with subtests.test(block=block):
            check_lines(block)


PURE_BASE = """\
from mmengine.hooks import LoggerHook
from mmengine.optim import OptimWrapper
from torch.optim import SGD

optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.02))
default_hooks = dict(logger=dict(type=LoggerHook))
"""


@pytest.mark.parametrize('block', blocks('python pure'), ids=str)
def test_lines_for_a_config_in_pure_python_build(block, tmp_path):
    (tmp_path / 'base.py').write_text(PURE_BASE)
    (tmp_path / 'config.py').write_text(block.text)
    config = Config.fromfile(tmp_path / 'config.py')
    assert list(config.default_hooks) == ['logger', 'agvm']
    for settings in config.default_hooks.values():
        HOOKS.build(dict(settings))
    wrapper = build_optim_wrapper(ToyDetector(), config.optim_wrapper)
    assert type(wrapper) is agvm_mm.AGVMOptimWrapper
    assert wrapper.optimizer.param_groups[0]['lr'] == 0.02


def build_wrapper(settings, model) -> None:
    """Build an optimizer wrapper as the Runner does."""
    assert OPTIM_WRAPPERS.get(settings.type)
    if settings.type == 'AGVMAmpOptimWrapper':  # It needs an accelerator.
        settings.type = 'AGVMOptimWrapper'
        settings.pop('loss_scale', None)
        settings.pop('dtype', None)
    runner = Runner.__new__(Runner)
    runner.model = model
    Runner.build_optim_wrapper(runner, settings)


def check_loop(settings) -> None:
    """Check that a loop has these arguments, without building it, which loads data."""
    loop = LOOPS.get(settings.type)
    known = {
        name
        for kind in loop.__mro__
        for name in inspect.signature(kind.__init__).parameters
    }
    assert {k for k in settings if k not in ('type', '_scope_')} <= known, settings


# ---------------------------------------------------------------------- bash


def commands_of(block: Block) -> list[list[str]]:
    """Return the words of each command without comments and environment settings."""
    found = []
    for line in block.text.replace('\\\n', ' ').splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r'[A-Z_]+=.*', words[0]):
            words.pop(0)
        if words:
            found.append(words)
    return found


class Parsed(Exception):
    """A tool has parsed its command line and would now start."""


def parse_command_line(script: str, arguments: list[str]) -> None:
    """Run a tool until its own parser has read the arguments."""
    path = ROOT / script
    assert path.exists(), f'there is no {script}'
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, args=None, namespace=None):
        try:
            parse_args(self, args, namespace)
        except SystemExit as stop:
            assert not stop.code, f'{script} {arguments}'
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [script, *arguments])
        patch.setattr(argparse.ArgumentParser, 'parse_args', parse_and_stop)
        with pytest.raises(Parsed):
            runpy.run_path(str(path), run_name='__main__')


def run_tool(script: str, arguments: list[str]) -> str:
    """Run a tool in this process and return its output."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.chdir(ROOT)
        patch.setattr(sys, 'argv', [script, *arguments])
        try:
            runpy.run_path(str(ROOT / script), run_name='__main__')
        except SystemExit as stop:
            assert not stop.code, f'{script} {arguments}: {out.getvalue()}'
    return out.getvalue()


def check_files(words: list[str]) -> None:
    """Check that the configs in a command exist; CONFIG is a placeholder."""
    for word in words:
        if word.startswith('configs/'):
            assert (ROOT / word).exists(), f'there is no {word}'


def check_ranks_script(script: str, arguments: list[str]) -> None:
    """Check the arguments of a script that starts ranks.

    They are dist_train.sh CONFIG RANKS ..., dist_test.sh CONFIG CHECKPOINT RANKS ...,
    or slurm_*.sh PARTITION JOB CONFIG WORK_DIR|CHECKPOINT ...
    """
    assert (ROOT / script).exists(), f'there is no {script}'
    tool = 'tools/test.py' if script.endswith('_test.sh') else 'tools/train.py'
    if 'slurm' in script:
        _, _, config, other, *rest = arguments
        first = [config, other] if tool.endswith('test.py') else [config]
        parse_command_line(tool, [*first, '--launcher', 'slurm', *rest])
        return
    files = 2 if tool.endswith('test.py') else 1
    ranks = arguments[files]
    assert ranks.isdecimal() or PLACEHOLDER.fullmatch(ranks), ranks
    rest = arguments[files + 1 :]
    parse_command_line(tool, [*arguments[:files], '--launcher', 'pytorch', *rest])


def check_command(words: list[str]) -> str | None:
    """Check a command as far as its cost allows.

    Returns:
        Its output if it was run, else None.
    """
    program, *arguments = words
    check_files(arguments)
    if program == 'make':
        targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.M)
        for word in arguments:
            setting = re.match(r'(ARGS|TORCH|MMENGINE|PYTHON|STACK)=', word)
            assert word in targets or setting, word
    elif program == 'bash':
        assert (ROOT / arguments[0]).exists()
    elif program.endswith('.sh'):
        check_ranks_script(program, arguments)
    elif program == 'python' and arguments[0] == '-m':
        module, *rest = arguments[1:]
        if module == 'gpu_check':
            no_gpu = mock.patch.object(torch.cuda, 'is_available', return_value=False)
            with no_gpu, redirect_stdout(io.StringIO()):
                assert gpu_check.__main__.main(rest) == 1
            return None
        if module == 'agvm_mm.doctor':
            with redirect_stdout(io.StringIO()) as output:
                assert doctor.main(rest) == 0, output.getvalue()
            return output.getvalue()
        if module == 'pytest':
            for word in rest:
                assert word.startswith('-') or (ROOT / word).exists(), word
            return None
        folder = ROOT / module.replace('.', '/')
        script = (
            folder / '__main__.py' if folder.is_dir() else folder.with_suffix('.py')
        )
        parse_command_line(str(script.relative_to(ROOT)), rest)
    elif program == 'python':
        script, *rest = arguments
        cheap = script in CHEAP and 'digits' not in rest
        if '--help' in rest or not cheap or any(map(PLACEHOLDER.fullmatch, rest)):
            parse_command_line(script, rest)
        else:
            return run_tool(script, rest)
    else:
        assert program in FOREIGN, f'unknown program {program}'
        if program == 'pip':
            check_pip(arguments)
        elif program == 'mim':
            check_mim(arguments)
    return None


def check_mim(arguments: list[str]) -> None:
    """Check `mim install` like pip, and `mim train agvm_mm` like our training tool."""
    command, *rest = arguments
    if command == 'install':
        check_pip(arguments)
        return
    assert command == 'train', arguments
    package, config, *rest = rest
    assert package in ('agvm_mm', 'mmdet', 'mmsegmentation'), package
    if package == 'agvm_mm':
        assert PLACEHOLDER.fullmatch(config) or (
            [path for path in (ROOT / 'configs').glob(f'[!_]*/{config}')]
        ), f'there is no {config}'
        # mim parses these itself and passes them on in another form.
        mims = {'--gpus', '--port'}
        while rest and rest[0] in mims:
            rest = rest[2:]
        parse_command_line('tools/train.py', [config, *rest])


def check_pip(arguments: list[str]) -> None:
    """Check that requirements parse and that local extras exist."""
    assert arguments[0] == 'install', arguments
    for word in arguments[1:]:
        if word.startswith('-'):
            continue
        local = re.fullmatch(r'\.(?:\[([\w,]+)\])?', word)
        if local is None:
            Requirement(word)
        for extra in (local and local[1] or '').split(','):
            assert not extra or f"'{extra}':" in (ROOT / 'setup.py').read_text()


def check_commands(page):
    above, printed = None, None
    for block in blocks_of(page):
        if block.kind == 'bash':
            printed = [check_command(words) for words in commands_of(block)][-1]
        elif block.kind == 'text output' and above == 'bash':
            assert printed == block.text, f'{block}: {printed}'
        elif block.kind == 'text output':
            assert above == 'python', f'{block}: no command above'
        above = block.kind


def test_commands_have_existing_files_and_options(subtests):
    for page in PAGES:
        with subtests.test(page=page):
            check_commands(page)


# ------------------------------------------------------------------ messages


Parts = tuple[str | None, ...]
"""Constant parts of a text in our source, with None for each value between them."""
# Such as 16, 'backbone', (256, 256), a/path.pth, or several of them.
VALUE = re.compile(r'(\([^()]*\)|[^\s,;]+)((, | and )(\([^()]*\)|[^\s,;]+))*')
# Quoted by our messages, but not our texts.
QUOTED = {'Invalid scalar type', 'Name or service not known'}


@lru_cache
def messages() -> dict[Parts, set[str]]:
    """Return the texts in our source with the exceptions that have them."""
    found = defaultdict(set)
    folders = ('agvm_mm', 'tools')
    for path in (p for folder in folders for p in (ROOT / folder).rglob('*.py')):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            raised = isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
            if raised:
                name = ast.unparse(node.exc.func)
                for argument in node.exc.args:
                    found[parts_of(argument)].add(name)
            if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
                found[parts_of(node)].add('')
    return {parts: kinds for parts, kinds in found.items() if length(parts) > 8}


def parts_of(node: ast.AST) -> Parts:
    """Return the parts of a text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return (node.value,)
    if isinstance(node, ast.JoinedStr):
        return tuple(part for value in node.values for part in parts_of(value))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return parts_of(node.left) + parts_of(node.right)
    return (None,)


def length(parts: Parts) -> int:
    """Return the number of characters that are constant."""
    return sum(len(part) for part in parts if part)


def reads(parts: Parts, text: str) -> bool:
    """Return whether a text of ours can read like this."""
    if not parts:
        return not text
    first, *rest = parts
    if first is not None:
        return text.startswith(first) and reads(tuple(rest), text[len(first) :])
    return any(
        reads(tuple(rest), text[end:]) and can_be_inserted(text[:end])
        for end in range(len(text) + 1)
    )


@lru_cache(None)
def can_be_inserted(text: str) -> bool:
    """Return whether a message may have this text at the place of a value.

    It is an example, or a text of ours.
    """
    stripped = text.strip()
    if not stripped or stripped in QUOTED or VALUE.fullmatch(stripped):
        return True
    return any(reads(parts, each) for parts in messages() for each in (text, stripped))


@for_each(blocks('text message'))
def test_messages_are_those_of_the_code(block):
    quoted = ' '.join(block.text.split())
    kind = ''
    if error := re.match(r'(\w+Error): ', quoted):
        kind, quoted = error[1], quoted[error.end() :]
    carriers = [
        kinds
        for parts, kinds in messages().items()
        if length(parts) > 24 and reads(parts, quoted)
    ]
    assert carriers, f'no text of ours reads {quoted!r}'
    raised = set().union(*carriers) - {''}
    if kind and raised:
        assert kind in raised, f'not a {kind}'
    if wrong := re.match(r"(\w+) has no argument '(\w+)'", quoted):
        with pytest.raises(TypeError) as error:
            getattr(agvm_mm, wrong[1])(**{wrong[2]: None})
        assert quoted == str(error.value)


@pytest.mark.parametrize(
    'text, found',
    [
        ('got 3 of backbone, neck and head', True),
        ('got (1, 2) of it', True),
        ('got 3 of a sentence that we do not have', False),
        ('got 3 of no name at all', True),
    ],
)
def test_example_values_of_messages_are_no_prose(text, found, monkeypatch):
    code = ast.parse("f'got {number} of {names}'", mode='eval').body
    ours = {parts_of(code): {''}, ('no ', None, ' at all'): {''}}
    monkeypatch.setitem(globals(), 'messages', lambda: ours)
    can_be_inserted.cache_clear()
    assert any(reads(parts, text) for parts in ours) == found
    can_be_inserted.cache_clear()


# ---------------------------------------------------------------------- site


class Links(HTMLParser):
    """Parser that collects the links and the anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record the attributes of a tag."""
        attributes = dict(attrs)
        self.anchors.add(attributes.get('id'))
        target = attributes.get('href' if tag in ('a', 'link') else 'src')
        if target is not None:
            self.links.add(target)
            if tag != 'a':
                self.loaded.add(target)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """The documentation site, built with warnings as errors."""
    pytest.importorskip('mkdocs', reason='needs the extra "docs"')
    folder = tmp_path_factory.mktemp('site')
    done = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'},
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_site_has_no_broken_links_and_loads_nothing_from_the_web(site):
    pages = {path: Links(path) for path in site.rglob('*.html')}
    assert (site / 'index.html') in pages and (site / 'docs/tuning.html') in pages
    for page, content in pages.items():
        if page.name == '404.html':  # Its links are relative to the web server.
            continue
        for target in content.links:
            if re.match(r'https?:', target):
                assert target not in content.loaded, f'{page} loads {target}'
                continue
            path, _, anchor = unquote(target).partition('#')
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), f'{page} links {target}'
            if anchor and linked.suffix == '.html':
                assert anchor in pages[linked].anchors, f'{page} links {target}'


def test_api_reference_has_every_module_with_public_names(site):
    pages = [Links(path) for path in (site / 'docs/reference').glob('*.html')]
    documented = set().union(*(page.anchors for page in pages))
    expected = set()
    for path in (ROOT / 'agvm_mm').rglob('*.py'):
        public = (ast.ClassDef, ast.FunctionDef)
        if path.stem != '__main__' and any(
            isinstance(node, public) and not node.name.startswith('_')
            for node in ast.parse(path.read_text()).body
        ):
            expected.add('.'.join(path.relative_to(ROOT).with_suffix('').parts))
    assert {name.removesuffix('.__init__') for name in expected} <= documented
