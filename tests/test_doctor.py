"The doctor, in environments that are really broken. Where it names a command, the command is run and must mend."
import json
import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

DOCTOR = ROOT/'transfer_course'/'backstage'/'doctor.py'
BIN = 'Scripts' if os.name == 'nt' else 'bin'
LINUX = pytest.mark.skipif(sys.platform != 'linux', reason='breaks the machine in ways that only Linux knows')


def environ(**more):
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'VIRTUAL_ENV', 'JPY_PARENT_PID')}
    return env | {k: str(v) for k, v in more.items()}


def examine(python=sys.executable, before=(), cwd=None, script=DOCTOR, preexec_fn=None, **env):
    "Run the doctor; gives (exit status, findings as {what: (state, sentence, command)})."
    done = subprocess.run([*map(str, before), str(python), str(script), '--json'], cwd=cwd or ROOT, env=environ(**env), capture_output=True,
                          text=True, timeout=600, preexec_fn=preexec_fn)
    assert done.stdout.startswith('['), done.stdout + done.stderr
    return done.returncode, {f['what']: (f['state'], f['says'], f['command']) for f in json.loads(done.stdout)}


def shell(text, cwd, **env):
    "Run a command line just as it was printed."
    done = subprocess.run(text, shell=True, cwd=cwd, env=environ(**env), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, text + '\n' + done.stdout + done.stderr
    return done.stdout


def borrowed(folder, *without):
    "A folder with links to every installed library but some: what a new environment borrows, to be made in no time."
    folder.mkdir()
    for home in dict.fromkeys(p for p in [*site.getsitepackages(), *sys.path] if Path(p).name in ('site-packages', 'dist-packages') and Path(p).is_dir()):
        for path in Path(home).iterdir():
            name = path.name.lower().replace('-', '_')
            if not name.startswith(without) and path.suffix not in ('.pth', '.egg_link') and not (folder/path.name).exists():
                (folder/path.name).symlink_to(path)
    return folder


def make_env(folder, *without):
    "A virtual environment with every library of this one but some; gives its Python."
    subprocess.run([sys.executable, '-m', 'venv', folder], check=True)
    python = folder/BIN/'python'
    home = subprocess.run([python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'], capture_output=True, text=True).stdout.strip()
    (Path(home)/'zz_borrowed.pth').write_text(f'{borrowed(folder.parent/(folder.name + "_libraries"), *without)}\n')
    return python


def test_a_healthy_environment():
    status, found = examine()
    assert found['Python'][0] in ('ok', 'note') and found['torch and torchvision'][0] == found['packages'][0] == 'ok'
    assert status == int(any(state == 'wrong' for state, _, _ in found.values()))
    text = subprocess.run([sys.executable, str(DOCTOR)], cwd=ROOT, env=environ(), capture_output=True, text=True).stdout
    assert text.startswith(('ok ', 'note ')) and text.rstrip().endswith(('well.', 'wrong.')) and '\x1b' not in text, 'words, not colours'


def test_standard_library_alone(tmp_path):
    "A Python with nothing installed reads the doctor as a bare file, and is told how to get the course."
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', tmp_path/'bare'], check=True)
    status, found = examine(tmp_path/'bare'/BIN/'python')
    assert status == 1 and found['packages'][0] == 'wrong' and 'torch' in found['packages'][1] and '-m pip install -e' in found['packages'][2]
    loaded = subprocess.run([tmp_path/'bare'/BIN/'python', '-X', 'importtime', str(DOCTOR), '--help'], capture_output=True, text=True)
    assert loaded.returncode == 0 and 'numpy' not in loaded.stderr and 'asyncio' not in loaded.stderr


@pytest.mark.slow
def test_torch_and_torchvision_that_do_not_match(tmp_path):
    "The well-known pair: torch 2.13.0 with whatever torchvision is newest. `operator torchvision::nms does not exist`."
    python = make_env(tmp_path/'env', 'torch', 'functorch', 'transfer_course', '__editable__')
    status, found = examine(python)
    assert status == 1 and 'torch is not installed' in found['torch and torchvision'][1]
    missing = found['torch and torchvision'][2]

    pip = [str(python), '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-cache-dir']
    for what in ('torch==2.13.0', 'torchvision'):
        got = subprocess.run([*pip, what], capture_output=True, text=True, timeout=600)
        if got.returncode: pytest.skip(f'pip can\'t install {what} here: {got.stderr.strip().splitlines()[-1:]}')
    error = subprocess.run([python, '-c', 'import torchvision'], capture_output=True, text=True).stderr
    assert 'torchvision::nms' in error, 'the environment is not broken the way it should be'

    status, found = examine(python)
    state, says, mend = found['torch and torchvision']
    assert status == 1 and state == 'wrong' and 'do not match' in says and '2.13.0' in says and 'torchvision::nms does not exist' in says
    assert mend == missing == f'{python} -m pip install --upgrade torch torchvision'
    shell(mend, tmp_path, PIP_NO_CACHE_DIR=1, PIP_QUIET=1)
    status, found = examine(python)
    assert found['torch and torchvision'][0] == 'ok', found['torch and torchvision']
    shutil.rmtree(tmp_path/'env')


def test_torchvision_of_another_build(tmp_path):
    "Versions match and the operators are missing all the same: only a fresh copy of both will do."
    python = make_env(tmp_path/'env', 'torchvision')
    home = next((tmp_path/'env').rglob('site-packages'))
    real = Path(shell(f'{sys.executable} -c "import torchvision; print(torchvision.__path__[0])"', tmp_path).strip())
    shutil.copytree(real, home/'torchvision', ignore=shutil.ignore_patterns('*.so', '*.pyd', '*.dylib', '__pycache__'))
    for info in real.parent.glob('torchvision-*.dist-info'): shutil.copytree(info, home/info.name)
    status, found = examine(python)
    state, says, mend = found['torch and torchvision']
    assert status == 1 and state == 'wrong' and 'different builds' in says and '--force-reinstall torch torchvision' in mend


def test_missing_and_old_packages(tmp_path):
    python = make_env(tmp_path/'env', 'tqdm', 'safetensors')
    home = next((tmp_path/'env').rglob('site-packages'))
    (home/'tqdm-1.0.dist-info').mkdir()
    (home/'tqdm-1.0.dist-info'/'METADATA').write_text('Metadata-Version: 2.1\nName: tqdm\nVersion: 1.0\n')
    (home/'tqdm-1.0.dist-info'/'RECORD').write_text('tqdm-1.0.dist-info/METADATA,,\ntqdm-1.0.dist-info/RECORD,,\n')
    status, found = examine(python)
    state, says, mend = found['packages']
    assert status == 1 and state == 'wrong' and 'safetensors missing' in says and 'tqdm 1.0 (needs' in says
    shell(mend, tmp_path, PIP_NO_DEPS=1, PIP_QUIET=1)
    assert examine(python)[1]['packages'][0] == 'ok'


def test_server_without_widgets(tmp_path):
    "JupyterLab is there, the extension that draws widgets is not."
    python = make_env(tmp_path/'env', 'jupyterlab_widgets')
    quiet = dict(PATH=f'{python.parent}{os.pathsep}/usr/bin{os.pathsep}/bin', JUPYTER_NO_CONFIG=1, HOME=tmp_path)
    status, found = examine(python, **quiet)
    state, says, mend = found['Jupyter server']
    assert status == 1 and state == 'wrong' and 'no widget support' in says
    shell(mend, tmp_path, PIP_QUIET=1)
    assert examine(python, **quiet)[1]['Jupyter server'][0] == 'ok'


@LINUX
def test_server_in_another_environment(tmp_path):
    "JupyterLab runs in one environment, the course in another, as with conda's base."
    course = make_env(tmp_path/'course', 'jupyterlab', 'notebook', 'jupyter_builder')
    server = make_env(tmp_path/'server', 'jupyterlab_widgets', 'ipywidgets', 'torch', 'transfer_course')
    script = server.parent/'jupyter-lab'
    script.write_text(f'#!{server}\nfrom jupyterlab.labapp import main\nmain()\n')
    script.chmod(0o755)
    there = dict(PATH=f'{server.parent}:/usr/bin:/bin', HOME=tmp_path, JUPYTER_NO_CONFIG=1)
    status, found = examine(course, **there)
    state, says, mend = found['Jupyter server']
    assert status == 1 and 'on the search path has no widget support' in says and str(server) in mend
    shell(mend, tmp_path, PIP_QUIET=1, **there)
    state, says, mend = examine(course, **there)[1]['Jupyter server']
    assert state == 'wrong' and 'does not know the kernel' in says and mend.startswith(str(course))
    shell(mend, tmp_path, **there)
    assert examine(course, **there)[1]['Jupyter server'][0] == 'ok'


@LINUX
def test_too_little_memory():
    import resource
    def limit(): resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000, resource.RLIM_INFINITY))
    status, found = examine(preexec_fn=limit)
    state, says, mend = found['memory']
    assert status == 1 and state == 'wrong' and 'a limit of this shell allows 1.5 GB' in says
    assert found['torch and torchvision'][0] == 'ok', 'a lack of memory is not taken for a broken package'
    mended = shell(f'ulimit -S -v 1500000; {mend}; {sys.executable} {DOCTOR} --json || true', ROOT)
    assert 'a limit of this shell' not in mended and '"memory"' in mended


def new_namespace(*options):
    "Words that start a command in a namespace of its own, or skip the test."
    words = ['unshare', '--map-root-user', *options]
    if not shutil.which('unshare') or subprocess.run([*words, 'true'], capture_output=True).returncode:
        pytest.skip('this machine does not let us make a namespace')
    return words


@LINUX
def test_too_little_disk(tmp_path):
    "A disk of 1.1 GB with 0.2 GB of pip's cache on it; without the cache there is room enough."
    (tmp_path/'small').mkdir()
    take = 'import json, sys; print([f for f in json.load(open(sys.argv[1])) if f["what"] == "disk"][0]["command"])'
    script = f'''
mount -t tmpfs -o size=1050m none {tmp_path}/small && mkdir -p {tmp_path}/small/cache/http-v2 && cd {tmp_path}/small
head -c 200000000 /dev/zero > cache/http-v2/thing
{sys.executable} {tmp_path}/doctor.py --json > {tmp_path}/before
sh -c "$({sys.executable} -c '{take}' {tmp_path}/before)"
{sys.executable} {tmp_path}/doctor.py --json > {tmp_path}/after; true'''
    shutil.copy(DOCTOR, tmp_path/'doctor.py')   # outside the clone, so that the current folder counts
    env = environ(PIP_CACHE_DIR=tmp_path/'small'/'cache')
    done = subprocess.run([*new_namespace('--mount'), 'sh', '-c', script], env=env, capture_output=True, text=True)
    if 'mount:' in done.stderr: pytest.skip(f'this machine does not let us mount: {done.stderr}')
    before, after = [[f for f in json.loads((tmp_path/n).read_text()) if f['what'] == 'disk'] for n in ('before', 'after')]
    assert before[0]['state'] == 'wrong' and '0.9 GB free where we work' in before[0]['says'], before
    assert before[0]['command'] == f'{sys.executable} -m pip cache purge' and after[0]['state'] == 'ok', after


@LINUX
def test_no_network_is_a_note():
    status, found = examine(before=new_namespace('--net'))
    state, says, _ = found['network']
    assert state == 'note' and 'all that is built in works' in says
    assert status == int(any(s == 'wrong' for s, _, _ in found.values()))


def old_python():
    "A Python of this machine that is too old, or skip."
    found = sorted(p for v in ('3.6', '3.7', '3.8', '3.9') for p in Path.home().glob(f'.pyenv/versions/{v}.*/bin/python'))
    found += [Path(p) for v in ('3.6', '3.7', '3.8', '3.9') if (p := shutil.which(f'python{v}')) and 'shims' not in p]
    if not found: pytest.skip('no Python older than 3.10 is on this machine')
    return found


def test_unsupported_python(tmp_path):
    for python in old_python():
        status, found = examine(python)
        assert status == 1 and found['Python'][0] == 'wrong' and 'too old' in found['Python'][1]
    mend = found['Python'][2]
    if 'uv' in mend: pytest.skip('no newer Python is on the search path')
    env = environ(PIP_NO_DEPS=1, PIP_QUIET=1)
    shell(mend, tmp_path, **env)
    status, found = examine(tmp_path/'.venv'/BIN/'python')
    assert found['Python'][0] != 'wrong'
