"Shared by the tests: the clone, a way to run commands, a small task, and a tiny course that can be broken."
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))   # the clone's own package, whatever else is installed


@pytest.fixture(scope='session')
def root(): return ROOT


@pytest.fixture(scope='session')
def command(tmp_path_factory):
    "Run `transfer-course …` from this clone in any folder."
    script = tmp_path_factory.mktemp('bin')/'command.py'
    script.write_text('import sys\nfrom transfer_course.backstage.cli import main\nsys.exit(main(sys.argv[1:]))\n')
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST' and not k.startswith('PYTEST_')} | dict(PYTHONPATH=str(ROOT), PYTHONIOENCODING='utf-8')
    def run(*words, cwd, before=(), start=False, **more):
        words = [*before, sys.executable, str(script), *words]
        pipes = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding='utf-8')
        call = subprocess.Popen if start else subprocess.run
        # a test runner in the background may ignore Ctrl-C, and its children would inherit that
        attend = dict(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) if start and os.name == 'posix' else {}
        return call(words, cwd=cwd, env=env | more, **pipes, **attend)
    return run


def dark_and_light():
    "A task of sixteen training pictures: dark ones and light ones."
    import numpy as np

    from transfer_course.tasks import Split, Task
    rng = np.random.default_rng(0)
    def part(name, n):
        labels = np.arange(n) % 2
        pictures = rng.integers(0, 120, (n, 48, 48, 3), dtype=np.uint8) + (labels * 100).astype(np.uint8)[:, None, None, None]
        return Split(name, pictures, labels, [f'{name}{i}' for i in range(n)])
    return Task('dark and light', 'pictures', ['dark', 'light'], part('train', 16), part('valid', 8), part('test', 8))


def cell(kind, text, **more):
    "A cell as nbdev stores it."
    number = sum(ord(c) * (i + 1) for i, c in enumerate(text)) % 10**8
    return dict(cell_type=kind, id=f'{number:08d}', metadata={}, source=text.splitlines(True)) | (
        dict(outputs=[], execution_count=None) if kind == 'code' else {}) | more


def lesson(title, *texts, module=None):
    "A lesson with title, badges, install cell and code cells."
    cells = [cell('markdown', f'# {title}\n\n> About {title}'), cell('markdown', '<!-- badges -->'), cell('code', '#| hide_input\n# install')]
    if module: cells.append(cell('code', f'#| default_exp {module}'))
    cells += [cell('code', t) for t in texts]
    for i, c in enumerate(cells): c['id'] = f'{c["id"][:6]}{i:02d}'
    return dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)


@pytest.fixture(scope='session')
def whole_tree(tmp_path_factory):
    "A tiny clone in which every check passes: made once, copied for each test."
    from transfer_course.backstage.sync import sync, write_notebook
    top = tmp_path_factory.mktemp('tiny')/'tree'
    (top/'nbs'/'backstage').mkdir(parents=True)
    (top/'transfer_course').mkdir()
    (top/'settings.ini').write_text('[DEFAULT]\nlib_name = transfer_course\nversion = 0.0.1\nuser = you\nrepo = course\nbranch = main\n'
                                    'git_url = https://example.org/%(user)s/%(repo)s\n')
    (top/'pyproject.toml').write_text((ROOT/'pyproject.toml').read_text())
    (top/'LICENSE').write_text('free')
    write_notebook(lesson('First', '#| export\ndef one():\n    "Give one."\n    return 1', 'one()', module='first'), top/'nbs'/'01_first.ipynb')
    second = lesson('Second', '#| export\nfrom transfer_course.first import one', '#| export\ndef two():\n    "Give two."\n    return 2 * one()',
                    module='second')
    write_notebook(second, top/'nbs'/'02_second.ipynb')
    write_notebook(lesson('Behind', '#| export\ndef help():\n    "Help."', module='backstage.behind'), top/'nbs'/'backstage'/'behind.ipynb')
    index = lesson('Index', module=None)
    index['cells'] += [cell('markdown', '<!-- lessons -->'), cell('markdown', 'Begin [here](01_first.ipynb).')]
    write_notebook(index, top/'nbs'/'index.ipynb')
    sync(top)
    return top


@pytest.fixture
def tree(whole_tree, tmp_path):
    "A tiny clone to break."
    return Path(shutil.copytree(whole_tree, tmp_path/'tree'))
