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

TRAIN = '''before, split = copy.deepcopy(explorer.model), explorer.task.train
optimizer = torch.optim.AdamW(learning_rates(explorer.model, 1e-2)); explorer.model.train()
for rows in torch.arange(len(split)).split(32):
    x, y = explorer.model.preprocess(split.inputs[rows.numpy()]), torch.as_tensor(split.labels)[rows]
    optimizer.zero_grad(); F.cross_entropy(explorer.model(x), y).backward(); optimizer.step()
explorer.model.eval(); clicked = DriftView(before, explorer.model, explorer.task.valid.inputs)
clicked'''
STATE = "print('frozen:', *[n for n, s in explorer.model.stages.items() if not any(p.requires_grad for p in s.parameters())])"


class Lab:
    "A JupyterLab of this Python, on a port of its own, with nothing of the user's settings."
    def __init__(self, folder):
        with socket.socket() as s: s.bind(('127.0.0.1', 0)); self.port = s.getsockname()[1]
        self.folder, self.base = folder/'work', f'http://127.0.0.1:{self.port}'
        self.folder.mkdir()
        self.env = env = dict(os.environ, PYTHONPATH=str(ROOT), HOME=str(folder), JUPYTER_CONFIG_DIR=str(folder/'config'), JUPYTER_DATA_DIR=str(folder/'data'),
                   JUPYTER_RUNTIME_DIR=str(folder/'runtime'), IPYTHONDIR=str(folder/'ipython'), PYDEVD_DISABLE_FILE_VALIDATION='1')
        words = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--ServerApp.ip=127.0.0.1', f'--port={self.port}', '--IdentityProvider.token=test',
                 f'--ServerApp.root_dir={self.folder}', '--ServerApp.port_retries=0', '--LabApp.news_url=',
                 '--LabApp.expose_app_in_browser=True', '--allow-root']
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


CELLS = "const nb = jupyterapp.shell.currentWidget, cells = nb.content.widgets.filter(c => c.model.type === 'code')"


def notebook_of(page, words):
    "Ask the notebook that is open: a JavaScript expression of `nb`, its panel, and `cells`, its code cells."
    return page.evaluate(f'() => {{ {CELLS}; return {words} }}')


def wait_for_notebook(page, words, seconds):
    page.wait_for_function(f'() => {{ {CELLS}; return {words} }}', timeout=1000 * seconds, polling=500)


def run_all(page):
    "Run every cell through the menu, and wait until all have run, or one has failed."
    wait_for_notebook(page, "nb.sessionContext.session?.kernel?.status === 'idle'", 120)
    page.click('text=Run >> nth=0')
    page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
    failed = "cells.flatMap(c => c.model.outputs.toJSON()).filter(o => o.output_type === 'error')"
    wait_for_notebook(page, f"cells.every(c => c.model.executionCount) || {failed}.length", 400)
    assert notebook_of(page, f'{failed}.map(o => o.ename + ": " + o.evalue)') == []


def cell_with(page, words):
    "The code cell whose source has these words, on the page."
    return page.locator('.jp-CodeCell', has=page.locator('.jp-InputArea-editor', has_text=words)).first


def show_cell(page, begins):
    "Scroll to the code cell whose source begins so. Nobody waits for JupyterLab's promise: it may never be kept where cells are redrawn meanwhile."
    notebook_of(page, f"(() => {{ const c = cells.find(c => c.model.sharedModel.getSource().startsWith({json.dumps(begins)}));"
                      " nb.content.activeCellIndex = nb.content.widgets.indexOf(c); nb.content.scrollToCell(c, 'start') })()")
    page.wait_for_timeout(500)


def add_cell(page, source):
    "Add a cell at the end, run it, and wait for it."
    notebook_of(page, "(nb.content.activeCellIndex = nb.content.widgets.length - 1, jupyterapp.commands.execute('notebook:insert-cell-below'))")
    notebook_of(page, f"(nb.content.activeCell.model.sharedModel.setSource({json.dumps(source)}), jupyterapp.commands.execute('notebook:run-cell'))")
    wait_for_notebook(page, 'cells.at(-1).model.executionCount', 120)
    notebook_of(page, "void nb.content.scrollToCell(cells.at(-1), 'start')")


@needs_browser
@pytest.mark.slow
def test_lesson_05_run_click_train_save_reopen(browser, lab):   # noqa: F811
    "The whole lesson in JupyterLab: a click changes the Python network, training leaves still what was clicked, the pictures outlive the kernel."
    lesson = json.loads((ROOT/'nbs'/'05_seeing_frozen_layers.ipynb').read_text())
    lesson['metadata'].pop('widgets', None)
    for c in lesson['cells']:
        if c['cell_type'] == 'code': c.update(outputs=[], execution_count=None)
    (lab.folder/'lesson05.ipynb').write_text(json.dumps(lesson))
    page = open_notebook(browser, lab, 'lesson05.ipynb')
    page.click('.jp-Dialog .jp-mod-accept', timeout=60_000)     # a lesson names no kernel: take the one that is offered
    run_all(page)

    show_cell(page, 'explorer = FreezeExplorer(')
    tower = cell_with(page, 'explorer = FreezeExplorer(')
    tower.locator('.tc-live').wait_for(timeout=60_000)
    assert tower.locator('.jp-RenderedSVG').count() == 1 and not tower.locator('.jp-RenderedSVG').is_visible(), 'the picture is hidden where the explorer lives'
    kernel = json.loads(lab.ask('/api/kernels'))[0]['id']
    assert execute(lab, kernel, STATE) == 'frozen: stem layer1 layer2 layer3\n'

    row = tower.locator('.tc-row[data-id="layer4"]')
    row.scroll_into_view_if_needed(); row.click()
    tower.locator('.tc-row[data-id="layer4"][aria-checked="false"]').wait_for(timeout=30_000)
    tower.locator('.tc-row[data-id="stem"]').focus(); page.keyboard.press(' ')
    tower.locator('.tc-row[data-id="stem"][aria-checked="true"]').wait_for(timeout=30_000)
    assert 'stem trains' in tower.locator('.tc-said').inner_text()
    assert execute(lab, kernel, STATE) == 'frozen: layer1 layer2 layer3 layer4\n', 'the Python network is what was clicked'

    add_cell(page, TRAIN)
    drift = page.locator('.tcv').last
    drift.locator('tbody tr').first.wait_for(timeout=30_000)
    rows = {r.split()[0]: ' '.join(r.split()[1:]) for r in drift.locator('tbody tr').all_inner_texts()}
    assert all(rows[s].startswith('frozen exactly 0 exactly 0') for s in ('layer1', 'layer2', 'layer3', 'layer4')), rows
    assert all(rows[s].startswith('trains') and 'exactly 0' not in rows[s].split('%')[0] for s in ('stem', 'head')), rows
    assert 'frozen and exactly as before, bit for bit' in drift.locator('[role=status]').inner_text()
    add_cell(page, 'clicked.twin()')

    notebook_of(page, "jupyterapp.commands.execute('docmanager:save')")
    for _ in range(40):
        saved = json.loads((lab.folder/'lesson05.ipynb').read_text())
        if ''.join(saved['cells'][-1]['source']) == 'clicked.twin()' and saved['cells'][-1]['outputs']: break
        page.wait_for_timeout(500)
    outputs = next(c['outputs'] for c in saved['cells'] if ''.join(c['source']).startswith('explorer = FreezeExplorer('))
    outputs = [o for o in outputs if 'it/s]' not in ''.join(o['data']['text/plain'])]     # on a slow machine a bar tells of the drawing
    assert [sorted(o['data']) for o in outputs] == [['application/vnd.jupyter.widget-view+json', 'text/plain'], ['image/svg+xml', 'text/plain']]
    alt = outputs[1]['metadata']['image/svg+xml']['alt']
    assert 'layer4: frozen' in alt and 'stem: trains' in alt, 'the stored picture shows what was clicked'
    assert 'exactly 0' in ''.join(saved['cells'][-1]['outputs'][0]['data']['image/svg+xml'])
    page.close()

    for k in json.loads(lab.ask('/api/kernels')): lab.ask(f'/api/kernels/{k["id"]}', 'DELETE')
    page = open_notebook(browser, lab, 'lesson05.ipynb')
    for begins in ('explorer = FreezeExplorer(', 'clicked.twin()'):
        picture = cell_with(page, begins).locator('.jp-RenderedSVG img, .jp-RenderedSVG svg').first
        for _ in range(60):                                     # cells above it may still grow and push it away
            show_cell(page, begins)
            if picture.is_visible(): break
            page.wait_for_timeout(500)
        assert picture.bounding_box()['height'] > 150
    assert page.locator('.tc-live').count() == 0
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
