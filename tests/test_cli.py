"The command line, by running it: lessons that pass, fail, hang, litter and shout."
import json
import os
import re
import shutil
import signal
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import ROOT, lesson

from transfer_course.backstage import cli
from transfer_course.backstage.assets import find_lessons
from transfer_course.backstage.sync import read_notebook, write_notebook

PICTURE = '''
from IPython.display import Image
import io
from PIL import Image as P
out = io.BytesIO(); P.new('RGB', ({side}, {side}), 'navy').save(out, 'PNG')
Image(out.getvalue(), alt='A navy square.', metadata=dict(alt='A navy square.'))
'''


@pytest.fixture
def folder(tmp_path):
    "A folder of lessons that are no part of any clone."
    nasty = lesson('Cats <script>alert(1)</script> & "dogs"', PICTURE.format(side=1000), 'open("litter.txt", "w").write("x")',
                   'from tqdm.auto import tqdm\nfor i in tqdm(range(3)): pass', '#| net\nimport nowhere')
    write_notebook(nasty, tmp_path/'01_nasty.ipynb')
    write_notebook(lesson('Broken', 'x = 1', 'y + x', 'z = 3'), tmp_path/'02_broken.ipynb')
    where = 'import os\n[os.environ[k] for k in ("HF_HUB_OFFLINE", "TRANSFER_COURSE_OFFLINE")], os.listdir(".")'
    write_notebook(lesson('Fine', where), tmp_path/'03_fine.ipynb')
    return tmp_path


class Loads(HTMLParser):
    "Collects what a browser would load, and what a screen reader would miss."
    def __init__(self, text):
        super().__init__()
        self.loads, self.silent, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag in ('link', 'script', 'iframe', 'object', 'embed'): self.loads.append((tag, attrs))
        for key in ('src', 'srcset', 'data', 'poster', 'background'):
            if key in attrs and not attrs[key].startswith('data:'): self.loads.append((tag, attrs[key]))
        if re.search(r'url\((?!data:)', attrs.get('style') or ''): self.loads.append((tag, attrs['style']))
        if tag == 'img' and not attrs.get('alt'): self.silent.append(attrs.get('src', '')[:40])


def test_learn_goes_on_after_a_failure(folder, command):
    done = command('learn', cwd=folder)
    assert done.returncode == 1, done.stdout
    records = json.loads((folder/'_learn'/'runs.json').read_text(encoding='utf-8'))
    assert [r['state'] for r in records.values()] == ['passed', 'failed', 'passed']
    assert "cell 5: NameError: name 'y' is not defined" in done.stdout and '2 of 3 lessons passed' in done.stdout
    assert sorted(p.name for p in folder.iterdir()) == ['01_nasty.ipynb', '02_broken.ipynb', '03_fine.ipynb', '_learn'], 'nothing is littered'

    pages = {p.name: p.read_text(encoding='utf-8') for p in (folder/'_learn').glob('*.html')}
    assert set(pages) == {'01_nasty.html', '02_broken.html', '03_fine.html', 'index.html'}
    for name, text in pages.items():
        page = Loads(text)
        assert not page.loads and not page.silent and 'main' in page.tags, name
        assert not re.search(r'url\(|@import', re.search(r'<style>(.*?)</style>', text, re.S)[1])
        assert "default-src 'none'" in text and 'prefers-color-scheme: dark' in text and '<html lang="en">' in text
        assert '<script' not in text
    assert 'Cats &lt;script&gt;alert(1)&lt;/script&gt; &amp; ' in pages['index.html']
    assert '<title>Cats &lt;script&gt;' in pages['01_nasty.html'] and 'alt="A navy square."' in pages['index.html']
    assert 'needs the network' in pages['01_nasty.html'] and '# install' not in pages['01_nasty.html']
    assert 'role="alert"' in pages['02_broken.html'] and 'id="error0"' in pages['02_broken.html'] and 'NameError' in pages['index.html']
    out = read_notebook(folder/'_learn'/'03_fine.ipynb')['cells'][3]['outputs'][0]['data']['text/plain']
    assert ''.join(out) == "(['1', '1'], [])"


def test_one_lesson_keeps_the_other_cards(folder, command):
    (folder/'02_broken.ipynb').unlink()
    assert command('learn', cwd=folder).returncode == 0
    assert command('learn', '--lesson', '3', cwd=folder).returncode == 0
    index = (folder/'_learn'/'index.html').read_text(encoding='utf-8')
    assert '01_nasty.html' in index and '03_fine.html' in index
    done = command('learn', '--lesson', '44', cwd=folder)
    assert done.returncode == 2 and done.stdout.count('\n') == 1 and 'there are: 01_nasty, 03_fine' in done.stdout


def test_no_lessons_is_one_sentence(tmp_path, command):
    shutil.copytree(ROOT/'transfer_course', tmp_path/'alone'/'transfer_course', ignore=shutil.ignore_patterns('__pycache__'))
    done = command('learn', cwd=tmp_path, PYTHONPATH=str(tmp_path/'alone'))
    assert done.returncode == 2 and 'No lessons in' in done.stdout and 'Traceback' not in done.stdout
    done = command('test', cwd=tmp_path, PYTHONPATH=str(tmp_path/'alone'))
    assert done.returncode == 2 and 'need a clone' in done.stdout


@pytest.mark.skipif(os.name == 'nt', reason='Ctrl-C is sent differently on Windows')
@pytest.mark.parametrize('sign', ['SIGINT', 'SIGTERM'])
def test_ctrl_c_writes_what_has_run(sign, tmp_path, command):
    mark = tmp_path/'kernel'
    sleep = f'import time\nopen({str(mark)!r}, "w").write(f"{{os.getpid()}} ")\ntime.sleep(600)'
    write_notebook(lesson('First', '1'), tmp_path/'01_first.ipynb')
    write_notebook(lesson('Long', 'import os\nprint("begun")', sleep), tmp_path/'02_long.ipynb')
    write_notebook(lesson('Never', '1'), tmp_path/'03_never.ipynb')
    run = command('learn', cwd=tmp_path, start=True)
    end = time.time() + 120
    while time.time() < end and not (mark.is_file() and mark.read_text().endswith(' ')): time.sleep(.2)
    run.send_signal(getattr(signal, sign))
    out, _ = run.communicate(timeout=60)
    records = json.loads((tmp_path/'_learn'/'runs.json').read_text(encoding='utf-8'))
    assert run.returncode == 1 and [r['state'] for r in records.values()] == ['passed', 'stopped'], out
    page = (tmp_path/'_learn'/'02_long.html').read_text(encoding='utf-8')
    state = subprocess.run(['ps', '-o', 'stat=', '-p', mark.read_text()], capture_output=True, text=True).stdout.strip()
    assert state[:1] in ('', 'Z'), 'no kernel is left behind'
    assert 'stopped from outside' in page and (tmp_path/'_learn'/'index.html').is_file()


def add(path, code):
    "Add a code cell to a notebook."
    nb = read_notebook(path); nb['cells'].append(lesson('x', code)['cells'][-1] | dict(id='added')); write_notebook(nb, path)


MEET = """import os, time
from pathlib import Path
Path({mine!r}).write_text(f'{{os.getpid()}} '); end = time.time() + {wait}
while not Path({other!r}).exists(): assert time.time() < end, 'alone'; time.sleep(.1)
assert os.environ['OMP_NUM_THREADS'] == '1'"""


def test_lessons_of_a_test_run_side_by_side(tree, tmp_path, command):
    "Each waits for the other and has one thread; nobody is told how long it took."
    for mine, other in (('01_first', '02_second'), ('02_second', '01_first')):
        add(tree/'nbs'/f'{mine}.ipynb', MEET.format(mine=str(tmp_path/mine), other=str(tmp_path/other), wait=60))
    done = command('test', 'lessons', cwd=tree)
    assert done.returncode == 0 and '2 of 2 lessons passed' in done.stdout, done.stdout
    assert sorted(re.findall(r'^passed +(\d.*)$', done.stdout, re.M)) == ['01_first', '02_second'], 'with no seconds behind the names'
    assert {r['seconds'] for r in json.loads((tree/'_learn'/'runs.json').read_text()).values()} == {None}
    assert 'passed</span>, ' in (tree/'_learn'/'01_first.html').read_text() and '2 passed.' in (tree/'_learn'/'index.html').read_text()


@pytest.mark.skipif(os.name == 'nt', reason='Ctrl-C is sent differently on Windows')
def test_ctrl_c_stops_all_that_run_side_by_side(tree, tmp_path, command):
    for mine in ('01_first', '02_second'): add(tree/'nbs'/f'{mine}.ipynb', MEET.format(mine=str(tmp_path/mine), other='never', wait=600))
    shutil.copy(tree/'nbs'/'02_second.ipynb', tree/'nbs'/'03_third.ipynb')
    run, marks, end = command('test', 'lessons', 'checks', cwd=tree, start=True), [tmp_path/'01_first', tmp_path/'02_second'], time.time() + 120
    while time.time() < end and not all(m.is_file() and m.read_text().endswith(' ') for m in marks): time.sleep(.2)
    run.send_signal(signal.SIGINT)
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 130 and '0 of 3 lessons passed' in out and '== checks ==' not in out, out
    assert {k: r['state'] for k, r in json.loads((tree/'_learn'/'runs.json').read_text()).items()} == {'01_first': 'stopped', '02_second': 'stopped'}
    for mark in marks:
        left = subprocess.run(['ps', '-o', 'stat=', '-p', mark.read_text()], capture_output=True, text=True).stdout.strip()
        assert left[:1] in ('', 'Z'), 'no kernel is left behind'


def test_every_notebook_runs_once(root, monkeypatch):
    "Lessons in fresh kernels, all others by nbdev-test: together every notebook there is, and none of them twice."
    from nbdev.doclinks import nbglob
    monkeypatch.chdir(root)
    others = {p.resolve() for p in nbglob(skip_file_re=cli._no_lessons(root), as_path=True)}    # as nbdev-test looks for them
    lessons = {x.path.resolve() for x in find_lessons(start=root)}
    there = {p.resolve() for p in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts}
    assert others | lessons == there and not others & lessons and min(len(others), len(lessons)) > 5


def test_a_failing_assert_is_found_wherever_it_stands(tree, command):
    for name in ('02_second', 'backstage/behind'): add(tree/'nbs'/f'{name}.ipynb', 'assert 1 + 1 == 3')
    done = command('test', 'nbdev-test', 'lessons', cwd=tree)
    assert done.returncode == 1 and re.findall(r'^failed +(nbdev-test|lessons)', done.stdout, re.M) == ['nbdev-test', 'lessons'], done.stdout
    assert '\tbehind.ipynb' in done.stdout and '\tindex.ipynb' not in done.stdout
    assert '1 of 2 lessons passed' in done.stdout and re.search('^failed +02_second +cell 7: AssertionError', done.stdout, re.M)


def test_a_kernel_that_dies_is_told(tmp_path, command):
    write_notebook(lesson('Dies', 'import os; os._exit(1)'), tmp_path/'01_dies.ipynb')
    done = command('learn', cwd=tmp_path)
    assert done.returncode == 1 and 'cell 4: the kernel died' in done.stdout


def no_network():
    "Words that start a command without any network, or None where the system can't."
    words = ['unshare', '--map-root-user', '--net']
    ok = shutil.which('unshare') and subprocess.run([*words, 'true'], capture_output=True).returncode == 0
    return words if ok else None


def test_without_any_network(tmp_path, command):
    if not no_network(): pytest.skip('this machine does not let us make a network namespace')
    code = 'import socket\ntry: socket.create_connection(("1.1.1.1", 53), 2); reached = True\nexcept OSError: reached = False\nassert not reached'
    write_notebook(lesson('Alone', code), tmp_path/'01_alone.ipynb')
    done = command('learn', cwd=tmp_path, before=no_network())
    assert done.returncode == 0, done.stdout


def test_store_keeps_what_is_worth_keeping(tree, command):
    path = tree/'nbs'/'01_first.ipynb'
    nb = read_notebook(path)
    more = lesson('x', PICTURE.format(side=50), 'from tqdm.auto import tqdm\nfor i in tqdm(range(3)): pass',
                  'import sys\nfrom tqdm import tqdm\nfor i in tqdm(range(3)): pass', 'import warnings; warnings.warn("take care")')['cells'][3:]
    nb['cells'] += more
    write_notebook(nb, path)
    done = command('learn', '--store', cwd=tree)
    assert done.returncode == 0, done.stdout
    nb = read_notebook(path)
    kept = [[o['output_type'] + ''.join(o.get('name', '')) for o in c['outputs']] for c in nb['cells'][-4:]]
    assert kept == [['execute_result'], [], [], ['streamstderr']] and 'widgets' not in nb['metadata']
    assert nb['cells'][-4]['outputs'][0]['metadata'] == {'image/png': {'alt': 'A navy square.'}}, 'cleaning keeps the text of a picture'
    assert command('test', 'checks', cwd=tree).stdout.count('wrong') == 1, 'only the path in the stored warning is wrong'


def test_store_refuses_what_is_not_fit(tree, command):
    path = tree/'nbs'/'01_first.ipynb'
    nb = read_notebook(path)
    heavy = 'from IPython.display import SVG\nSVG("<svg xmlns=\'http://www.w3.org/2000/svg\'><title>x</title><!--" + "x" * 120_000 + "--></svg>")'
    nb['cells'] += lesson('x', heavy, 'import matplotlib.pyplot as plt\nplt.plot([1, 2]);')['cells'][3:]
    write_notebook(nb, path)
    done = command('learn', '--lesson', '01', '--store', cwd=tree)
    assert done.returncode == 1 and 'a picture of 120 kB' in done.stdout and 'without alternative text' in done.stdout
    assert not read_notebook(path)['cells'][-1]['outputs']


def test_test_sums_up(tree, command):
    (tree/'tests').mkdir()
    (tree/'tests'/'test_it.py').write_text('def test_yes(): pass\n\n\ndef test_no(): assert 0\n')
    done = command('test', 'checks', 'ruff', 'pytest', cwd=tree)
    text = done.stdout.strip().splitlines()
    assert done.returncode == 1 and re.search(r'1 failed, 1 passed, 1 rerun in', text[-1]), done.stdout
    assert [x.split()[:2] for x in text[-5:-2]] == [['passed', 'checks'], ['passed', 'ruff'], ['failed', 'pytest']]
    (tree/'tests'/'test_it.py').write_text('def test_yes(): pass\n')
    assert command('test', 'pytest', cwd=tree).returncode == 0
    assert command('test', 'juggling', cwd=tree).returncode == 2


def test_a_second_try_is_given_and_told(tree, command):
    "A browser that hiccups once is no failure, and is named."
    (tree/'tests').mkdir()
    (tree/'tests'/'test_it.py').write_text('from pathlib import Path\n\ndef test_moody():\n    p = Path("mark"); there = p.exists(); p.touch(); assert there\n')
    done = command('test', 'pytest', cwd=tree)
    assert done.returncode == 0 and '1 passed, 1 rerun in' in done.stdout.splitlines()[-1] and 'RERUN tests/test_it.py::test_moody' in done.stdout, done.stdout


def test_tests_that_measure_seconds_run_alone(tree, command):
    (tree/'tests').mkdir()
    (tree/'tests'/'test_it.py').write_text('import os\nimport pytest\n\nWORKER = os.environ.get("PYTEST_XDIST_WORKER", "")\n\n'
        'def test_beside(): assert WORKER.startswith("gw") and os.environ["OMP_NUM_THREADS"] == "1"\n\n'
        '@pytest.mark.alone\ndef test_alone(): assert not WORKER\n')
    done = command('test', 'pytest', cwd=tree)
    assert done.returncode == 0 and '== 2 passed in ' in done.stdout.splitlines()[-1], done.stdout
    (tree/'tests'/'test_it.py').write_text('import pytest\n\ndef test_beside(): pass\n\n@pytest.mark.alone\ndef test_alone(): assert 0\n')
    done = command('test', 'pytest', cwd=tree)
    assert done.returncode == 1 and '== 1 failed, 1 passed, 1 rerun in ' in done.stdout.splitlines()[-1], done.stdout
    (tree/'tests'/'test_it.py').write_text('nonsense\n')
    assert command('test', 'pytest', cwd=tree).returncode == 1
    (tree/'tests'/'test_it.py').unlink()
    assert command('test', 'pytest', cwd=tree).returncode == 1, 'no tests at all are no success'


def test_module_runs_too(root):
    import sys
    done = subprocess.run([sys.executable, '-m', 'transfer_course', '--version'], cwd=root, capture_output=True, text=True)
    import transfer_course
    assert done.stdout.strip() == transfer_course.__version__


def setup(folder, what='learn', **env):
    "Run tools/setup.sh of a copy of the clone's set-up files."
    for name in ('settings.ini', 'setup.py', 'pyproject.toml'): shutil.copy(ROOT/name, folder)
    (folder/'tools').mkdir(exist_ok=True)
    shutil.copy(ROOT/'tools'/'setup.sh', folder/'tools')
    return subprocess.run(['sh', 'tools/setup.sh', what], cwd=folder, env=dict(os.environ, **env), capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(os.name == 'nt', reason='make is for Linux and macOS')
class TestSetup:
    def python(self, folder, text):
        "A Python that behaves as `text` says, and otherwise like the real one."
        import sys
        path = Path(folder)/'python3'
        path.write_text(f'#!/bin/sh\n{text}\nexec {sys.executable} "$@"\n')
        path.chmod(0o755)
        return str(path)

    def test_old_python(self, tmp_path):
        old = next((p for v in ('3.9', '3.8', '3.7') for p in Path.home().glob(f'.pyenv/versions/{v}.*/bin/python')), None)
        old = str(old or self.python(tmp_path, 'if [ "$1" = -V ]; then echo Python 3.8.1; exit 0; fi; exit 1'))
        done = setup(tmp_path, PYTHON=old)
        assert done.returncode == 1 and 'needs Python 3.10 or newer' in done.stderr and 'Python 3.' in done.stderr
        assert done.stderr.count('\n') == 1 and not (tmp_path/'.venv').exists()

    def test_venv_missing(self, tmp_path):
        broken = self.python(tmp_path, 'if [ "$2" = venv ]; then echo "ensurepip is not available"; exit 1; fi')
        done = setup(tmp_path, PYTHON=broken)
        assert done.returncode == 1 and 'apt-get install python3.' in done.stderr and 'ensurepip' in done.stderr
        assert not (tmp_path/'.venv').exists()

    def test_a_folder_that_is_no_environment_is_not_removed(self, tmp_path):
        mine = tmp_path/'project'; mine.mkdir(); (mine/'thesis.txt').write_text('years')
        done = setup(tmp_path, COURSE_VENV=str(mine))
        assert done.returncode == 1 and 'is no virtual environment' in done.stderr and (mine/'thesis.txt').read_text() == 'years'
        broken = self.python(tmp_path, 'if [ "$2" = venv ]; then echo no; exit 1; fi')
        done = setup(tmp_path, VENV=str(mine), PYTHON=broken)                   # a word of other projects is not ours
        assert 'venv module is missing' in done.stderr and (mine/'thesis.txt').exists()

    def test_second_call_is_instant(self, tmp_path):
        import sys
        (tmp_path/'.venv'/'bin').mkdir(parents=True)
        (tmp_path/'.venv'/'bin'/'python').symlink_to(sys.executable)
        for name in ('settings.ini', 'setup.py', 'pyproject.toml'): shutil.copy(ROOT/name, tmp_path)
        mark = subprocess.run('cat settings.ini setup.py pyproject.toml | cksum', shell=True, cwd=tmp_path, capture_output=True, text=True)
        (tmp_path/'.venv'/'.installed-learn').write_text(mark.stdout.strip())
        start = time.perf_counter()
        done = setup(tmp_path)
        assert done.returncode == 0 and not done.stderr and time.perf_counter() - start < 5
