"Timeline, drift and budget view in Chromium: keyboard, pointer, axe, narrow pages, hostile names."
import json
import re

import pytest
import torch
from test_views import BERT, HOSTILE, RESNET, Net, X, study
from views_page import ASSETS, CHROMIUM, browser, show

from transfer_course.backstage.views import BudgetView, DriftView, Snapshots, ThawTimeline
from transfer_course.freezing import freeze_until
from transfer_course.training import History, Phase, Plan, fine_tuning, gradual_unfreezing

pytest.importorskip('playwright', reason='Playwright is not installed; pip install playwright runs the tests in a browser.')
if not CHROMIUM.exists(): pytest.skip(f'There is no {CHROMIUM}; apt-get install chromium runs the tests in a browser.', allow_module_level=True)


@pytest.fixture(scope='module')
def chromium():
    with browser() as b: yield b


def drift(names=('stem', 'body', 'head'), examples=X):
    torch.manual_seed(0); net = Net(('a', 'b', 'head')); net._modules = dict(zip(names, net._modules.values()))
    snaps = Snapshots(examples); snaps.add(net, 0); freeze_until(net, names[1])
    for i in (1, 2, 3):
        with torch.no_grad(): net._modules[names[-1]][0].weight += .1 * i; net._modules[names[1]][1].running_mean += .1
        snaps.add(net, i)
    return DriftView(snaps)


def broken():
    d = drift()
    with torch.no_grad(): d.snapshots._first['stem']['parameters']['0.weight'] += 1
    net = Net(('stem', 'body', 'head')); freeze_until(net, 'body'); d.snapshots.add(net, 4)
    return DriftView(d.snapshots)


def following():
    plan = fine_tuning(15, head_epochs=5); t = ThawTimeline(plan, RESNET)
    rows = [dict(phase=1 + (i > 4), valid_accuracy=.7) for i in range(9)]
    t.follow(dict(epoch=9, epochs=20, done=False, history=History(plan, rows, phases=[dict(epochs=5), dict(epochs=4)])))
    return t


VIEWS = dict(timeline=lambda: ThawTimeline(fine_tuning(15, head_epochs=5), RESNET), bert=lambda: ThawTimeline(gradual_unfreezing(3), BERT), following=following,
             drift=drift, bert_drift=lambda: drift(('embeddings', 'layer0', 'head')), no_cka=lambda: drift(examples=None), broken=broken,
             budget=lambda: BudgetView(study(), 50), between=lambda: BudgetView(study(), 73), one_seed=lambda: BudgetView(study(seeds=1), 50))


def axe(page):
    from axe_playwright_python.sync_playwright import Axe
    return [(v['id'], [n['html'][:120] for n in v['nodes']]) for v in Axe().run(page).response['violations']]


def press(page, *keys):
    for k in keys: page.keyboard.press(k)
    page.wait_for_timeout(60)


def says(page): return page.locator('[role=status]').inner_text()


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('name', VIEWS)
def test_axe_finds_nothing(chromium, name, scheme):
    pytest.importorskip('axe_playwright_python', reason='axe-playwright-python is not installed.')
    page = show(chromium, VIEWS[name](), color_scheme=scheme)
    assert axe(page) == [] and page.faults == []
    page.context.close()


@pytest.mark.parametrize('name', ['timeline', 'drift', 'budget'])
def test_themes_of_jupyterlab_win_over_the_system(chromium, name):
    pytest.importorskip('axe_playwright_python', reason='axe-playwright-python is not installed.')
    for scheme, light, paper in (('light', 'false', 'rgb(22, 25, 30)'), ('dark', 'true', 'rgb(255, 255, 255)')):
        page = show(chromium, VIEWS[name](), color_scheme=scheme); page.evaluate(f'document.body.dataset.jpThemeLight = "{light}"')
        assert page.evaluate('getComputedStyle(document.querySelector(".tcv")).backgroundColor') == paper and axe(page) == []
        page.context.close()


@pytest.mark.parametrize('name', VIEWS)
def test_no_page_scrolls_sideways_at_400_percent(chromium, name, width=320):    # of 1,280 pixels
    pytest.importorskip('axe_playwright_python', reason='axe-playwright-python is not installed.')
    page = show(chromium, VIEWS[name](), viewport=dict(width=width, height=700))
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    if name not in ('timeline', 'bert', 'following'): assert page.evaluate(
            '[...document.querySelectorAll(".scroll")].every(e => e.scrollWidth <= e.clientWidth + 1)')
    assert axe(page) == []
    page.context.close()


@pytest.mark.parametrize('name', VIEWS)
def test_one_tab_stop_with_visible_focus(chromium, name):
    page = show(chromium, VIEWS[name]()); page.focus('#before'); press(page, 'Tab')
    assert page.evaluate('document.activeElement.closest(".tcv") && document.activeElement.getAttribute("role") || document.activeElement.type') in ('slider',
            'range')
    assert page.evaluate('getComputedStyle(document.activeElement).outlineWidth') == '3px'
    assert page.evaluate('document.activeElement.dataset.lmSuppressShortcuts') == 'true'      # or JupyterLab would take the arrows
    press(page, 'Tab'); assert page.evaluate('document.activeElement.id') == 'after'
    page.context.close()


def test_the_keyboard_alone_edits_a_plan(chromium):
    t = ThawTimeline(fine_tuning(15, head_epochs=5), RESNET); page = show(chromium, t); page.focus('#before'); press(page, 'Tab')
    def step(key, holds): press(page, *key.split(' ')); assert holds(t.plan), (key, t.plan); assert page.evaluate(
            'document.activeElement.matches(".handle")'), key
    step('ArrowDown', lambda p: p.phases[0].start == 'layer4'); step('ArrowUp', lambda p: p.phases[0].start == -1)
    assert 'Phase 1 of 2, epochs 1 to 5: the head alone trains' in says(page)
    step('ArrowUp', lambda p: p.phases[0].start == -1); assert 'Not done: Phase 1 already trains the head alone' in says(page)
    step('Home', lambda p: p.phases[0].start is None); step('End', lambda p: p.phases[0].start == -1)
    step('ArrowRight ArrowRight ArrowLeft', lambda p: p.phases[0].epochs == 6)
    step('PageDown +', lambda p: p.phases[1].lr == 2e-3); step('- -', lambda p: p.phases[1].lr == 5e-4)
    step('Insert', lambda p: len(p.phases) == 3); assert page.evaluate('document.activeElement.dataset.p') == '2'
    step('PageUp PageUp PageUp Delete', lambda p: len(p.phases) == 2 and p.phases[0].start is None)
    step('u', lambda p: len(p.phases) == 3); step('Control+z', lambda p: len(p.phases) == 2)
    for _ in range(20): press(page, 'Backspace')
    assert t.plan == fine_tuning(15, head_epochs=5) and 'nothing to undo' in says(page) and page.faults == []
    handle = page.locator('.handle[tabindex="0"]')
    assert handle.get_attribute('aria-valuetext') == t.view['phases'][0]['words'] and page.locator('[role=status]').get_attribute('aria-live') == 'polite'
    page.context.close()


def test_the_page_does_not_decide(chromium):
    t = ThawTimeline(fine_tuning(3), RESNET); page = show(chromium, t); page.evaluate('window.hear = async () => "{}"')
    before = page.locator('.grid').inner_html(); page.locator('.handle').first.focus(); press(page, 'ArrowDown', 'Insert')
    assert page.locator('.grid').inner_html() == before and page.evaluate('window.wishes') == [{'do': 'lower', 'phase': 0}, {'do': 'insert', 'phase': 0}]
    page.context.close()


def test_pointer_drags_edges_and_sets_stages(chromium):
    t = ThawTimeline(fine_tuning(15, head_epochs=5), RESNET); page = show(chromium, t)
    def middle(selector): b = page.locator(selector).bounding_box(); return b['x'] + b['width'] / 2, b['y'] + b['height'] / 2
    x, y = middle('.edge[data-p="0"]'); per = page.locator('.phase[data-p="0"]').bounding_box()['width'] / 5
    page.mouse.move(x, y); page.mouse.down(); page.mouse.move(x + 3 * per, y, steps=6)
    assert '8 epochs' in says(page) and t.plan.phases[0].epochs == 5                                      # a preview, not yet an edit
    page.mouse.up(); page.wait_for_timeout(60); assert t.plan.phases[0].epochs == 8
    page.locator('.cell[data-p="1"][data-s="3"]').click(position=dict(x=8, y=8)); page.wait_for_timeout(60); assert t.plan.phases[1].start == 'layer3'
    (x, y), (_, z) = middle('.cell[data-p="1"][data-s="3"]'), middle('.cell[data-p="1"][data-s="1"]')
    page.mouse.move(x, y); page.mouse.down(); page.mouse.move(x, z, steps=5); page.mouse.up(); page.wait_for_timeout(60)
    assert t.plan.phases[1].start == 'layer1'
    plan = t.plan; page.mouse.move(x, y); page.mouse.down(); page.mouse.move(x, z); page.keyboard.press('Escape'); page.mouse.up(); page.wait_for_timeout(60)
    assert t.plan is plan and page.faults == []
    for text, holds in (('Insert phase', lambda p: len(p.phases) == 3), ('Delete phase', lambda p: len(p.phases) == 2),
                        ('Faster', lambda p: p.phases[1].lr == 2e-3),
                        ('Undo', lambda p: p.phases[1].lr == 1e-3), ('Epoch more', lambda p: p.phases[1].epochs == 16), ('Thaw one more',
                                lambda p: p.phases[1].start is None)):
        page.get_by_role('button', name=text).click(); page.wait_for_timeout(60); assert holds(t.plan), text
        assert page.evaluate('document.activeElement.matches(".handle")'), text
    page.context.close()


def test_a_training_is_followed_live_and_focus_stays(chromium):
    t = ThawTimeline(fine_tuning(15, head_epochs=5), RESNET); page = show(chromium, t); page.locator('.handle').nth(1).click()
    for done, share in ((7, '13.3'), (20, '100')):
        rows = [dict(phase=1 + (i > 4), valid_accuracy=.5 + i / 100) for i in range(done)]
        t.follow(dict(epoch=done, epochs=20, done=done == 20, history=History(t.plan, rows, phases=[dict(epochs=5), dict(epochs=done - 5)])))
        page.evaluate('s => window.put(s)', json.dumps(dict(view=t.view)))
        assert page.locator('.done').nth(1).get_attribute('style').startswith(f'width:{share}') and f'epoch {done} of 20' in says(page)
        assert page.locator('.now').count() == (6 if done == 7 else 0) and page.evaluate('document.activeElement.dataset.p') == '1'
    page.context.close()


def test_the_slider_of_drift(chromium):
    d = drift(); page = show(chromium, d); page.focus('#before'); press(page, 'Tab', 'Home')
    assert d.at == 0 and 'the start' in says(page); press(page, 'ArrowRight', 'ArrowRight')
    assert d.at == 2 and 'exactly as before, bit for bit' in says(page) and page.locator('input').get_attribute('aria-valuetext') == d.view['frames'][2][
            'words']
    row = page.locator('tbody tr').filter(has_text='stem'); assert row.locator('td').nth(0).inner_text() == 'frozen' and 'exactly 0' in row.inner_text()
    assert [t.split('\n')[0].split('\t')[0] for t in page.locator('tbody tr').all_inner_texts()] == ['head', 'body', 'stem']        # the input is at the bottom
    press(page, 'End'); assert d.at == 3 and page.faults == []
    page.context.close()


def test_a_leak_is_told_in_words(chromium):
    page = show(chromium, broken()); assert 'stem is frozen, yet' in says(page) and page.locator('tr.broken').count() == 1
    page.context.close()


def test_the_slider_of_labels(chromium):
    b = BudgetView(study(), 20); page = show(chromium, b); page.focus('#before'); press(page, 'Tab', 'PageUp')
    assert b.labels == 50 and page.locator('output').inner_text() == '50' and 'With 50 labels' in says(page)
    press(page, 'ArrowRight'); assert 50 < b.labels < 200 and 'were not measured; the neighbours are 50 and 200' in says(page)
    assert page.locator('thead th').all_inner_texts() == ['plan', '50 labels', '200 labels']
    press(page, 'End'); assert 'above all that was measured' in says(page)
    press(page, 'PageDown'); assert b.labels == 200; press(page, 'Home'); assert 'below all' in says(page) and b.at == 0 and page.faults == []
    page.context.close()


def test_a_page_without_kernel_still_answers(chromium):
    b = BudgetView(study(), 20); page = show(chromium, b); page.evaluate('window.moved = async () => "{}"'); page.locator('input').focus()
    press(page, 'PageUp')
    assert 'With 50 labels' in says(page) and b.labels == 20
    page.context.close()


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_names_execute_nothing(chromium, name):
    t = ThawTimeline(Plan(name, [Phase(2, -1), Phase(2, None)]), [name, 'b', 'head'])
    for view in (t, drift((name, 'b', 'head')), BudgetView(study(plans=(name, 'b'), name=name), 50)):
        page = show(chromium, view, viewport=dict(width=360, height=700)); press(page, 'Tab', 'Tab', 'ArrowRight', 'ArrowLeft')
        assert page.evaluate('window.broken') is None and page.locator('#el img, #el script').count() == 0 and page.faults == []
        assert page.evaluate('document.documentElement.scrollWidth') <= 360
        shown = page.locator('.tcv').inner_text()
        if name.isprintable() and len(name) < 40: assert name.split('"')[0] in shown
        page.context.close()
    page = chromium.new_page(); page.set_content(t.twin().svg); page.wait_for_timeout(50)
    assert page.evaluate('window.broken') is None; page.close()


def test_nothing_moves_where_motion_is_unwelcome(chromium):
    page = show(chromium, following(), reduced_motion='reduce')
    assert set(page.evaluate('[...document.querySelectorAll(".tcv *")].map(e => getComputedStyle(e).transitionDuration)')) <= {'0s', '1e-05s'}
    page.context.close()


def test_a_view_that_leaves_listens_no_more(chromium):
    t = ThawTimeline(fine_tuning(3), RESNET); page = show(chromium, t); before = page.locator('.tcv').inner_html(); page.evaluate('window.end()')
    t.edit('lower')
    page.evaluate('s => window.put(s)', json.dumps(dict(view=t.view))); assert page.locator('.tcv').inner_html() == before
    page.context.close()


def test_the_script_is_small_and_writes_text_only():
    js, css = ((ASSETS/f'widgets.{kind}').read_text(encoding='utf-8') for kind in ('js', 'css'))
    assert len(js.encode()) < 30_000 and sorted(p.name for p in ASSETS.glob('*.js')) == ['widgets.js']
    assert not re.search(r'innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|\bimport\b|fetch\(|srcdoc', js)
    assert not re.search(r'https?://', js.replace('http://www.w3.org/2000/svg', '')) and not re.search(r'url\(|@import', css)
