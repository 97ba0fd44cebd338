"Opened anywhere: the wheel in an environment of its own, a lesson alone in an empty folder, the files for Binder."
import json
import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, cell, lesson

from transfer_course.backstage.assets import settings
from transfer_course.backstage.sync import install_cell, read_notebook, write_notebook

RUN = '''
import sys, nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
nb = nbformat.read(sys.argv[1], 4)
own = AsyncKernelManager(kernel_name='python3', kernel_spec_manager=KernelSpecManager(kernel_dirs=[], ensure_native_kernel=True))
NotebookClient(nb, km=own).execute()
nbformat.write(nb, sys.argv[1])
'''
BIN = 'Scripts' if os.name == 'nt' else 'bin'


def clean_environ(**more): return {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'IN_TEST')} | more


def call(*words, cwd, **env):
    "Run a command and give its output; what it said is shown where it fails."
    words = [str(w) for w in words]
    done = subprocess.run(words, cwd=cwd, env=clean_environ(**env), capture_output=True, text=True, encoding='utf-8', timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_of(root, folder):
    "Copy the files of a clone that git would keep."
    ignore = shutil.ignore_patterns('.git', '.venv*', '_*[!y]', 'build', 'dist', '*.egg-info', '__pycache__', '.*cache', '.ipynb_checkpoints')
    return Path(shutil.copytree(root, folder, ignore=ignore))


def build(what, source, out):
    "Build a wheel or an sdist of `source` with the build backend, in this environment; gives its path."
    out.mkdir(parents=True, exist_ok=True)
    call(sys.executable, '-c', f'from setuptools import build_meta; build_meta.build_{what}({str(out)!r})', cwd=source)
    return next(out.iterdir())


@pytest.fixture(scope='module')
def source(tmp_path_factory): return copy_of(ROOT, tmp_path_factory.mktemp('source')/'course')


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory): return build('wheel', source, tmp_path_factory.mktemp('wheel'))


def make_env(folder, *install):
    "Make a virtual environment that borrows this one's libraries, but not this course, and install into it."
    call(sys.executable, '-m', 'venv', '--without-pip', folder, cwd=folder.parent)
    python = folder/BIN/'python'
    home = Path(call(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))', cwd=folder.parent).strip())
    borrowed = [p for p in [*site.getsitepackages(), *sys.path] if Path(p).name in ('site-packages', 'dist-packages')]
    (home/'borrowed.pth').write_text('\n'.join(dict.fromkeys(borrowed)) + '\n')
    assert subprocess.run([str(python), '-c', 'import transfer_course'], cwd=folder.parent, env=clean_environ(), capture_output=True).returncode
    if install: pip_install(python, *install)
    return python


def pip_install(python, *what):
    "Install into another environment with this one's pip."
    call(sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet', '--no-deps', '--no-build-isolation', '--force-reinstall', *what,
         cwd=python.parent)


@pytest.fixture(scope='module')
def env(wheel, tmp_path_factory): return make_env(tmp_path_factory.mktemp('wheel_env')/'env', wheel)


def test_wheel_has_what_it_needs(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT/'transfer_course').rglob('*.py')}
    assets = {p.relative_to(ROOT).as_posix() for p in (ROOT/'transfer_course'/'assets').glob('*') if p.is_file()}
    results = {f'transfer_course/results/{p.name}' for p in (ROOT/'nbs'/'results').glob('*') if p.suffix in ('.json', '.md')}
    assert modules | assets | results <= set(names)
    assert not [n for n in names if n.endswith('.ipynb') or n.startswith(('tests', 'nbs'))]
    meta = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith('.dist-info/METADATA'))).decode()
    cfg = settings(ROOT)
    assert f'\nVersion: {cfg["version"]}\n' in meta and f'Requires-Python: >={cfg["min_python"]}' in meta
    assert f'License-Expression: {cfg["license"]}' in meta
    assert sorted(re.findall(r'Requires-Dist: ([^;\n]+)\n', meta)) == sorted(cfg['requirements'].split())
    assert any(n.endswith('licenses/LICENSE') for n in names)


def test_sdist_makes_the_same_wheel(source, wheel, tmp_path):
    sdist = build('sdist', source, tmp_path/'sdist')
    safely = dict(filter='data') if hasattr(tarfile, 'data_filter') else {}        # Debian's 3.11 has no filter
    with tarfile.open(sdist) as archive: archive.extractall(tmp_path/'unpacked', **safely)
    again = build('wheel', next((tmp_path/'unpacked').iterdir()), tmp_path/'again')
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_installed_wheel_finds_its_files(env, tmp_path):
    code = ('import json, transfer_course, pathlib; from transfer_course.backstage.assets import results_path, asset_path, find_root; '
            'print(json.dumps([transfer_course.__file__, str(find_root()), str(asset_path("page.css")), '
            '[str(results_path(n)) for n in json.loads(input())]]))')
    names = [p.name for p in (ROOT/'nbs'/'results').glob('*.json')]
    done = subprocess.run([env, '-c', code], cwd=tmp_path, env=clean_environ(), input=json.dumps(names), capture_output=True, text=True)
    package, root, css, results = json.loads(done.stdout)
    home = Path(package).parent
    assert 'wheel_env' in package and root == 'None' and Path(css).parent == home/'assets'
    assert all(Path(r).is_file() and Path(r).parent == home/'results' for r in results)


def test_console_command(env, tmp_path):
    command = env.parent/'transfer-course'
    assert call(command, '--version', cwd=tmp_path).strip() == settings(ROOT)['version']
    done = subprocess.run([str(command), 'learn'], cwd=tmp_path, env=clean_environ(), capture_output=True, text=True)
    assert done.returncode == 2 and 'No lessons in' in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.slow
def test_one_lesson_alone_in_an_empty_folder(env, tmp_path):
    path = sorted((ROOT/'nbs').glob('01_*.ipynb'))[0]
    shutil.copy(path, tmp_path)
    said = call(env.parent/'transfer-course', 'learn', cwd=tmp_path)
    assert '1 of 1 lessons passed' in said
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, '_learn'])
    page = (tmp_path/'_learn'/path.with_suffix('.html').name).read_text(encoding='utf-8')
    assert '<img' in page and 'class="passed"' in page


def test_editable_install_reads_the_clone(source, tmp_path):
    python = make_env(tmp_path/'env')
    clone = copy_of(source, tmp_path/'clone')
    pip_install(python, '-e', clone)
    code = ('import transfer_course; from transfer_course.backstage.assets import find_root, results_path; '
            'print(transfer_course.__file__); print(find_root()); print(results_path("new.json", new=True))')
    package, root, result = call(python, '-c', code, cwd=tmp_path).split()
    assert Path(package) == clone/'transfer_course'/'__init__.py' and Path(root) == clone and Path(result).parent == clone/'nbs'/'results'


def test_install_cell_installs_what_is_missing(source, tmp_path):
    "The cell of a fork whose repository is a folder: run in a kernel that has no course."
    repo = copy_of(source, tmp_path/'repo')
    git = ['git', '-c', 'user.name=t', '-c', 'user.email=t@example.org', '-c', 'init.defaultBranch=main']
    if not shutil.which('git'): pytest.skip('git is not installed')
    for words in (['init', '-q'], ['add', '-A'], ['commit', '-q', '-m', 'x']): call(*git, *words, cwd=repo)
    text = install_cell(dict(git_url=repo.as_uri(), branch='main'))
    nb = lesson('Alone', 'import transfer_course; transfer_course.__file__')
    python = make_env(tmp_path/'env')
    nb['cells'][2]['source'] = text.splitlines(True)
    nb['cells'].insert(2, cell('code', f'import sys\nassert sys.prefix == {str(tmp_path/"env")!r}, "this would install into another environment"'))
    write_notebook(nb, tmp_path/'01_alone.ipynb')
    pip = dict(PIP_NO_DEPS='1', PIP_NO_BUILD_ISOLATION='0', PIP_QUIET='1')   # what pip reads as "no build isolation" is the false value
    call(python, '-c', RUN, '01_alone.ipynb', cwd=tmp_path, **pip)
    out = ''.join(read_notebook(tmp_path/'01_alone.ipynb')['cells'][-1]['outputs'][-1]['data']['text/plain'])
    assert str(tmp_path/'env') in out


def test_install_cell_does_nothing_where_all_is_there(env, tmp_path):
    code = install_cell(dict(git_url='https://nowhere.invalid/x', branch='main'))
    quiet = clean_environ(IPYTHONDIR=str(tmp_path))
    done = subprocess.run([env, '-m', 'IPython', '-c', code], cwd=tmp_path, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout.strip()


class TestBinder:
    lines = (ROOT/'binder'/'requirements.txt').read_text().split('\n')[:-1]

    def test_requirements_name_the_index_once_and_no_pins(self):
        assert self.lines == ['--index-url https://download.pytorch.org/whl/cpu', 'torch', 'torchvision']

    def test_runtime_is_a_python_we_support(self):
        name, version = (ROOT/'binder'/'runtime.txt').read_text().strip().split('-')
        lowest = settings(ROOT)['min_python']
        assert name == 'python' and [int(x) for x in version.split('.')] >= [int(x) for x in lowest.split('.')]

    @pytest.mark.skipif(os.name == 'nt', reason='Binder builds on Linux')
    def test_post_build_is_a_program(self):
        path = ROOT/'binder'/'postBuild'
        assert os.access(path, os.X_OK) and path.read_text().startswith('#!/bin/bash\n')
        subprocess.run(['bash', '-n', path], check=True)
        assert 'pip install' in path.read_text() and '-e .' in path.read_text()
