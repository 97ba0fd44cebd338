"The explorer where learners meet it: JupyterLab in a real browser. Skips, and says so, where there is no browser."
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from conftest import ROOT
from test_widgets_browser import browser, needs_browser  # noqa: F401

TASK = '''from transfer_course.backbones import attach_head, load_backbone
from transfer_course.tasks import load_pets
import torch, torch.nn.functional as F
from transfer_course.freezing import learning_rates
from transfer_course.widgets import FreezeExplorer
task = load_pets('drawn', n_train=16, n_valid=4, n_test=2, size=32, verbose=False)
model = attach_head(load_backbone('pocket-resnet', verbose=False), task)
before = {k: v.clone() for k, v in model.state_dict().items()}
print('ready')'''
TRAIN = '''optimizer = torch.optim.AdamW(learning_rates(model, 1e-2)); model.train()
for rows in torch.arange(16).split(8):
    x, y = model.preprocess(task.train.inputs[rows.numpy()]), torch.as_tensor(task.train.labels)[rows]
    optimizer.zero_grad(); F.cross_entropy(model(x), y).backward(); optimizer.step()
moved = sorted({k.split('.')[1] for k, v in model.state_dict().items() if not torch.equal(v, before[k])})
print('trained:', *moved)'''


def notebook(*cells):
    "A notebook as JSON."
    code = [dict(cell_type='code', id=f'c{i}', metadata={}, source=c, outputs=[], execution_count=None) for i, c in enumerate(cells)]
    return dict(cells=code, metadata=dict(kernelspec=dict(name='python3', display_name='Python 3', language='python')), nbformat=4, nbformat_minor=5)


class Lab:
    "A JupyterLab of this Python, on a port of its own, with nothing of the user's settings."
    def __init__(self, folder):
        with socket.socket() as s: s.bind(('127.0.0.1', 0)); self.port = s.getsockname()[1]
        self.folder, self.base = folder/'work', f'http://127.0.0.1:{self.port}'
        self.folder.mkdir()
        self.env = env = dict(os.environ, PYTHONPATH=str(ROOT), HOME=str(folder), JUPYTER_CONFIG_DIR=str(folder/'config'), JUPYTER_DATA_DIR=str(folder/'data'),
                   JUPYTER_RUNTIME_DIR=str(folder/'runtime'), IPYTHONDIR=str(folder/'ipython'), PYDEVD_DISABLE_FILE_VALIDATION='1')
        words = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--ServerApp.ip=127.0.0.1', f'--port={self.port}', '--IdentityProvider.token=test',
                 f'--ServerApp.root_dir={self.folder}', '--ServerApp.port_retries=0', '--LabApp.news_url=', '--allow-root']
        self.log = open(folder/'lab.log', 'wb')
        self.process = subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, cwd=self.folder)
        for _ in range(240):
            try: self.ask('/api/status'); return
            except OSError: time.sleep(.5)
            if self.process.poll() is not None: break
        raise RuntimeError((folder/'lab.log').read_text()[-2000:])

    def ask(self, path, method='GET'):
        request = urllib.request.Request(self.base + path, headers={'Authorization': 'token test'}, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer: return answer.read()

    def close(self):
        self.process.terminate()
        try: self.process.wait(20)
        except subprocess.TimeoutExpired: self.process.kill()
        self.log.close()


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    started = Lab(tmp_path_factory.mktemp('lab'))
    yield started
    started.close()


def open_notebook(chromium, lab, name):
    "Open a notebook in JupyterLab and wait until its cells are there."
    page = chromium.new_context(viewport=dict(width=1400, height=1000)).new_page()
    page.goto(f'{lab.base}/lab/tree/{name}?token=test&reset', wait_until='domcontentloaded')
    page.wait_for_selector('.jp-Notebook .jp-CodeCell', timeout=120_000)
    return page


def run_all(page, count):
    "Run every cell, and wait until the last one has run."
    page.click('.jp-Notebook .jp-CodeCell >> nth=0')
    page.wait_for_timeout(1500)
    page.evaluate("() => document.querySelector('.jp-Notebook').focus()")
    page.click('text=Run >> nth=0')
    page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
    page.wait_for_selector(f'.jp-CodeCell >> nth={count - 1} >> .jp-InputPrompt:has-text("[{count}]")', timeout=180_000)


@needs_browser
@pytest.mark.slow
def test_click_train_save_reopen(browser, lab):                 # noqa: F811
    "A click freezes a stage of the Python model; it stays still in training; the still picture outlives the kernel."
    state = "print('frozen:', *[n for n, s in model.stages.items() if not any(p.requires_grad for p in s.parameters())])"
    (lab.folder/'small.ipynb').write_text(json.dumps(notebook(TASK, 'explorer = FreezeExplorer(model, task)\nexplorer')))
    page = open_notebook(browser, lab, 'small.ipynb')
    run_all(page, 2)
    page.wait_for_selector('.tc-live', timeout=60_000)
    assert page.locator('.jp-RenderedSVG').count() == 1 and not page.locator('.jp-RenderedSVG').is_visible(), 'the picture is hidden where the explorer lives'

    row = page.locator('.tc-row[data-id="layer4"]')
    row.scroll_into_view_if_needed(); row.click()
    page.wait_for_selector('.tc-row[data-id="layer4"][aria-checked="false"]', timeout=30_000)
    page.locator('.tc-row[data-id="stem"]').focus(); page.keyboard.press(' ')
    page.wait_for_selector('.tc-row[data-id="stem"][aria-checked="false"]', timeout=30_000)
    assert 'stem is frozen' in page.locator('.tc-said').inner_text()

    kernel = json.loads(lab.ask('/api/kernels'))[0]['id']
    said = execute(lab, kernel, state + '\n' + TRAIN)
    assert 'frozen: stem layer4' in said and 'trained: head layer1 layer2 layer3\n' in said

    page.keyboard.press('Control+s')
    page.wait_for_timeout(2500)
    saved = json.loads((lab.folder/'small.ipynb').read_text())
    outputs = saved['cells'][1]['outputs']
    assert [sorted(o['data']) for o in outputs] == [['application/vnd.jupyter.widget-view+json', 'text/plain'], ['image/svg+xml', 'text/plain']]
    assert outputs[1]['metadata']['image/svg+xml']['alt'].count('frozen') == 2, 'the stored picture shows what was clicked'
    page.close()

    lab.ask(f'/api/kernels/{kernel}', 'DELETE')
    page = open_notebook(browser, lab, 'small.ipynb')
    picture = page.locator('.jp-RenderedSVG img, .jp-RenderedSVG svg').first
    picture.wait_for(state='visible', timeout=60_000)
    assert page.locator('.tc-live').count() == 0 and picture.bounding_box()['height'] > 150
    page.close()


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize('trusted', [True, False])
def test_the_lesson_itself(browser, lab, trusted):              # noqa: F811
    "Lesson 05 as it is stored, without any kernel: its pictures are seen; where JupyterLab trusts no SVG yet, their tables are."
    name = f'lesson{trusted}.ipynb'
    notebook = json.loads((ROOT/'nbs'/'05_seeing_frozen_layers.ipynb').read_text())
    notebook['metadata']['test'] = trusted                      # trust goes by content
    (lab.folder/name).write_text(json.dumps(notebook))
    if trusted: subprocess.run([sys.executable, '-m', 'nbformat.sign', name], cwd=lab.folder, env=lab.env, check=True, capture_output=True)
    page = open_notebook(browser, lab, name)
    page.click('.jp-Dialog .jp-mod-reject', timeout=60_000)     # no kernel, please
    page.mouse.move(700, 600)
    what = page.locator('.jp-RenderedSVG' if trusted else '.jp-RenderedText:has-text("parameters train; ")')
    for _ in range(40):                                         # cells are drawn when they come near
        if what.count(): break
        page.mouse.wheel(0, 400); page.wait_for_timeout(500)
    assert what.first.is_visible() and page.locator('.tc-live').count() == 0
    page.close()


def execute(lab, kernel, code):
    "Run code in a kernel that is there, and give what it printed."
    from jupyter_client import BlockingKernelClient
    file = next(p for p in (lab.folder.parent/'runtime').glob(f'kernel-{kernel}.json'))
    client = BlockingKernelClient(connection_file=str(file)); client.load_connection_file(); client.start_channels()
    try:
        said = []
        def hear(m): said.append(m['content'].get('text', '') or '\n'.join(m['content'].get('traceback', [])))
        client.execute_interactive(code, timeout=120, output_hook=hear)
        return ''.join(said)
    finally: client.stop_channels()
