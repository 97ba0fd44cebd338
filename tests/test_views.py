"Timeline, drift and budget view without a browser: facts, edits, promises, twins."
import json
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from conftest import dark_and_light
from torch import nn

from transfer_course.backbones import attach_head, load_backbone
from transfer_course.backstage.checks import silent_pictures
from transfer_course.backstage.views import (EDITS, MOST_PHASES, BudgetView, DriftView, Snapshots, ThawTimeline, ViewError, answer, cka, distance, edited,
                                             gram, rows_of,
                                             stops_of, timeline_facts)
from transfer_course.freezing import freeze_until
from transfer_course.studies import Study
from transfer_course.training import Phase, Plan, feature_extraction, fine_tuning, fit, from_scratch, gradual_unfreezing

RESNET, BERT = ['stem', 'layer1', 'layer2', 'layer3', 'layer4', 'head'], ['embeddings', *[f'layer{i}' for i in range(12)], 'head']
HOSTILE = ['<img src=x onerror="window.broken = 1">', '"\'`&quot;', '\u202eright to left \u05d0\u05d1', '🐈‍⬛🔥', 'x' * 500, 'two\nlines',
           '</title><script>window.broken = 1</script>']


def plain(view): assert json.loads(json.dumps(view.view, allow_nan=False)) == view.view
def drawn(twin):
    "The twin is well-formed, speaks, and loads nothing."
    root = ET.fromstring(twin.svg)
    assert silent_pictures(twin.svg) == [] and twin.alt and twin.text
    assert not [e for e in root.iter() if e.tag.split('}')[1] in ('script', 'image', 'foreignObject', 'a')
                or any(k.startswith('on') or 'href' in k for k in e.attrib)]
    data, meta = twin._repr_mimebundle_()
    assert set(data) == {'image/svg+xml', 'text/plain'} and meta['image/svg+xml']['alt'] == twin.alt and len(twin.svg) < 100_000
    return root


def study(plans=('from scratch', 'feature extraction', 'fine-tuning'), budgets=(20, 50, 200), seeds=5, name='made up', lacking=()):
    rng, truth, runs = np.random.default_rng(0), np.arange(200) % 2, []
    for k, plan in enumerate(plans):
        for b in budgets:
            for seed in range(seeds):
                if (plan, b) in lacking: continue
                hit = rng.random(200) < (.55, .75, .74)[k % 3] + .1 * math.log10(b / 20) * (k % 3)
                runs.append(dict(plan=plan, budget=b, seed=seed, accuracy=float(hit.mean()), macro_f1=float(hit.mean()), ece=.1, valid_accuracy=.5, epochs=3,
                                 seconds=(6., .5, 5.)[k % 3], how='', predictions=np.where(hit, truth, 1 - truth).tolist(), labels=truth.tolist(), test='t'))
    return Study(runs, dict(task=name, backbone=name, plans={n: n for n in plans}, budgets=list(budgets), seeds=list(range(seeds)), equal='epochs',
                            seconds=None), len(runs))


@pytest.fixture(scope='module')
def task(): return dark_and_light()


# ---- thaw timeline

@pytest.mark.parametrize('plan', [from_scratch(3), feature_extraction(3), fine_tuning(3), fine_tuning(3, start='layer3'), gradual_unfreezing(2)])
@pytest.mark.parametrize('names', [RESNET, BERT])
def test_timeline_says_what_the_plan_says(plan, names):
    t = ThawTimeline(plan, names); plain(t); drawn(t.twin())
    assert t.plan is plan and t.view['epochs'] == plan.epochs and t.view['stages'] == names
    for shown, p in zip(t.view['phases'], plan.phases, strict=True):
        trains = [bool(c['rate']) for c in shown['cells']]
        first = 0 if p.start is None else names.index(p.start) if isinstance(p.start, str) else len(names) + p.start
        assert trains == [i >= first for i in range(len(names))] and shown['start'] == first and shown['epochs'] == p.epochs
        heats = [c['heat'] for c in shown['cells'] if c['rate']]
        assert heats == sorted(heats) and all(0 <= h <= 1 for h in heats)
        assert all(w in t.text for w in (shown['words'],))
    if not plan.pretrained: assert 'random weights' in t.text


def test_a_plan_alone_counts_from_the_head():
    t = ThawTimeline(gradual_unfreezing(1, stages=6))
    assert [p['start'] for p in t.view['phases']] == [6, 5, 4, 3, 2, 1, 0]
    assert t.edit('lower').phases[0].start == -2
    with pytest.raises(ViewError, match="'layer3'.*give model="): ThawTimeline(fine_tuning(start='layer3'))
    with pytest.raises(ViewError, match='no stage'): ThawTimeline(fine_tuning(start='layer9'), RESNET)
    with pytest.raises(ViewError, match='at least one phase'): ThawTimeline(Plan('none', []), RESNET)
    with pytest.raises(ViewError, match='at least one phase'): ThawTimeline(3)
    for phase in (Phase(0), Phase(2.5), Phase(1, lr=0), Phase(1, lr=math.inf), Phase(1, lr=math.nan), Phase(1, decay=0)):
        with pytest.raises(ViewError, match='Phase 1 has'): ThawTimeline(Plan('odd', [phase]), RESNET)


def test_edits_make_new_plans_and_undo_takes_them_back():
    plan = fine_tuning(15, head_epochs=5); t = ThawTimeline(plan, RESNET)
    steps = [('lower', 0, None, lambda p: p.phases[0].start == 'layer4'), ('start', 1, 'layer2', lambda p: p.phases[1].start == 'layer2'),
             ('start', 1, -1, lambda p: p.phases[1].start == -1), ('start', 1, 0, lambda p: p.phases[1].start is None), ('higher', 1, None,
                     lambda p: p.phases[1].start == 'layer1'),
             ('longer', 1, None, lambda p: p.phases[1].epochs == 16), ('shorter', 0, None, lambda p: p.phases[0].epochs == 4), ('epochs', 0, 9,
                     lambda p: p.phases[0].epochs == 9),
             ('faster', 0, None, lambda p: p.phases[0].lr == .02), ('slower', 1, None, lambda p: p.phases[1].lr == 5e-4), ('rate', 1, 3e-4,
                     lambda p: p.phases[1].lr == 3e-4),
             ('insert', 1, None, lambda p: len(p.phases) == 3 and p.phases[2].start is None), ('delete', 0, None, lambda p: len(p.phases) == 2)]
    before = []
    for do, phase, value, holds in steps:
        before.append(t.plan); assert holds(t.edit(do, phase, value)), do
        assert t.view['phases'][t.view['pick']]['words'] == t.view['says'] and type(t.plan) is Plan
    assert {s[0] for s in steps} == set(EDITS) - {'undo'} and plan == fine_tuning(15, head_epochs=5)
    for old in reversed(before): assert t.edit('undo') is old
    with pytest.raises(ViewError, match='nothing to undo'): t.edit('undo')
    assert t.plan.statistics == 'keep' and t.plan.phases[1].decay == .7            # what the timeline does not show stays


@pytest.mark.parametrize('do, phase, value, why', [
    ('higher', 0, None, 'head alone'), ('lower', 1, None, 'every stage'), ('start', 0, 'layer9', 'no stage'), ('start', 0, 6, 'no stage'), ('start', 0, True,
            'no stage'),
    ('start', 0, 1.5, 'no stage'), ('epochs', 0, 0, 'delete the phase'), ('epochs', 0, 1001, '1 to 1000'), ('epochs', 0, 2.5, '1 to 1000'), ('epochs', 0,
            True, '1 to 1000'),
    ('rate', 0, 0, 'rate from'), ('rate', 0, math.nan, 'rate from'), ('rate', 0, 'x', 'rate from'), ('rate', 0, math.inf, 'rate from'), ('delete', 7, None,
            'no phase'),
    ('longer', True, None, 'no phase'), ('longer', -1, None, 'no phase'), ('explode', 0, None, 'no edit'), (None, 0, None, 'no edit'), (['x'], 0, None,
            'no edit')])
def test_an_edit_without_sense_is_refused_in_one_sentence(do, phase, value, why):
    t = ThawTimeline(fine_tuning(3, head_epochs=2), RESNET); plan = t.plan
    with pytest.raises(ViewError, match=why) as e: t.edit(do, phase, value)
    assert '\n' not in str(e.value) and t.plan is plan
    t.hear(dict(do=do, phase=phase, value=value))
    assert t.plan is plan and t.view['refused'] and str(e.value) in t.view['says']; plain(t)


@pytest.mark.parametrize('wish', [None, 3, 'delete', [], {}, {'do': {}}, {'do': 'start', 'phase': None}, {'do': 'start', 'phase': 0, 'value': {}},
                                  {'do': 'epochs', 'phase': 10**30, 'value': 1}])
def test_a_wish_of_any_shape_does_no_harm(wish):
    t = ThawTimeline(fine_tuning(3), RESNET); plan = t.plan
    t._handle_custom_msg(wish, [])
    assert t.plan is plan and t.view['refused']; plain(t)


def test_plan_has_the_last_word():
    class Strict(Plan):
        def __post_init__(self):
            super().__post_init__()
            if self.epochs > 5: raise ValueError('Too long for this plan.')
    t = ThawTimeline(Strict('strict', [Phase(5, -1)]), RESNET); t.hear(dict(do='longer', phase=0))
    assert t.view['says'] == 'Not done: Too long for this plan.' and t.plan.epochs == 5
    t = ThawTimeline(feature_extraction(1), RESNET)
    with pytest.raises(ViewError, match=f'{MOST_PHASES} phases'):
        for _ in range(20): t.edit('insert')
    assert len(t.plan.phases) == MOST_PHASES


def test_undo_reaches_back_a_hundred_edits():
    t = ThawTimeline(Plan('p', [Phase(1, -1)]), RESNET)
    for _ in range(130): t.edit('longer')
    for _ in range(100): t.edit('undo')
    assert t.plan.epochs == 31
    with pytest.raises(ViewError, match='nothing to undo'): t.edit('undo')


def test_the_edited_plan_trains_and_the_timeline_follows(task):
    model = attach_head(load_backbone('pocket-resnet', pretrained=False), task)
    t = ThawTimeline(fine_tuning(2, head_epochs=1, batch=8), model); t.edit('start', 1, 'layer4'); t.edit('longer', 0)
    snaps, seen = Snapshots(task.valid.inputs), []
    history = fit(model, task, t.plan, progress=False, watch=[t.follow, snaps, lambda f: seen.append(json.loads(json.dumps(t.view['now'])))])
    assert history.plan is t.plan and [s['done'] for s in seen] == [[], [1], [2], [2, 1], [2, 2],
                                                                    [2, 2]] and [s['running'] for s in seen] == [True] * 5 + [False]
    assert 'Trained: epoch 4 of 4' in t.text and f'{history.rows[-1]["valid_accuracy"]:.1%}' in t.text; plain(t); drawn(t.twin())
    drift = DriftView(snaps); plain(drift); drawn(drift.twin())
    assert drift.ok and len(drift.view['frames']) == 5 and drift.at == 4
    last = {r['stage']: r for r in snaps.frames[-1]['rows']}
    assert all(last[s]['promised'] and last[s]['still'] and last[s]['change'] == last[s]['buffers_change'] == 0 and last[s]['cka'] == 1 and last[s]['same']
               for s in ('stem', 'layer1', 'layer2', 'layer3'))
    assert last['layer4']['change'] > 0 and last['head']['change'] > 0 and not last['layer4']['promised'] and 'exactly as before, bit for bit' in drift.text
    early = {r['stage']: r for r in snaps.frames[2]['rows']}
    assert early['layer4']['promised'] and early['layer4']['still']                                   # frozen in the first phase
    t.edit('longer'); assert t.view['now'] is None                                                    # the progress was of another plan


def test_a_timeline_of_another_plan_says_so(task):
    model = attach_head(load_backbone('pocket-resnet', pretrained=False), task); t = ThawTimeline(fine_tuning(2), model)
    fit(model, task, Plan('other', [Phase(1, -1)], batch=8), progress=False, watch=t.follow)
    assert 'Another plan trains: other' in t.text and t.view['now']['done'] == []


# ---- drift

class Net(nn.Module):
    def __init__(self, names=('stem', 'body', 'head'), norm=nn.BatchNorm1d):
        super().__init__()
        for n in names: self.add_module(n, nn.Sequential(nn.Linear(6, 6), norm(6)))
    def forward(self, x):
        for m in self.children(): x = torch.tanh(m(x))
        return x


@pytest.fixture
def net(): torch.manual_seed(0); return Net()


X = torch.linspace(-2, 2, 60).reshape(10, 6) ** 2


def test_figures_agree_with_a_count_by_hand(net):
    import copy
    before = copy.deepcopy(net); freeze_until(net, 'body')
    with torch.no_grad():
        net.body[0].weight += .1; net.body[1].running_var *= 3; net.head[1].bias += 1
    d = DriftView(before, net, X); rows = d.table()
    old, new = ([p.detach().flatten() for p in m.body.parameters()] for m in (before, net))
    by_hand = ((torch.cat(new) - torch.cat(old)).norm() / torch.cat(old).norm()).item()
    assert math.isclose(rows.change['body'], by_hand, rel_tol=1e-6) and rows.change['stem'] == 0 and rows.still['stem'] and d.ok
    old, new = (torch.cat([m.body[1].running_mean, m.body[1].running_var]) for m in (before, net))
    assert math.isclose(rows.buffers_change['body'], ((new - old).norm() / old.norm()).item(), rel_tol=1e-6)
    def features(m): m.eval(); return m.body(torch.tanh(m.stem(X))).detach()
    x, y = (f - f.mean(0) for f in (features(before), features(net)))
    assert math.isclose(rows.cka['body'], ((y.T @ x).norm()**2 / ((x.T @ x).norm() * (y.T @ y).norm())).item(), rel_tol=1e-4)


@pytest.mark.parametrize('leak', ['weight', 'running_mean', 'num_batches_tracked'])
def test_the_smallest_leak_of_a_frozen_stage_is_told(net, leak):
    snaps = Snapshots(X); snaps.add(net, 0); freeze_until(net, 'head'); snaps.add(net, 1)
    assert not snaps.problems
    t = net.body[1].state_dict(keep_vars=True)[leak]
    with torch.no_grad(): t.copy_(torch.nextafter(t, t + 1) if t.is_floating_point() else t + 1)
    snaps.add(net, 2); d = DriftView(snaps)
    assert not d.ok and len(d.problems) == 1 and "body is frozen, yet 1 of" in d.problems[0] and d.problems[0] in d.view['frames'][2]['words']
    assert [f['ok'] for f in d.view['frames']] == [True, True, False] and d.view['frames'][2]['rows'][1]['far'] != 'exactly 0' or leak != 'weight'


def test_a_stage_that_trained_first_is_not_accused_by_snapshots(net):
    snaps = Snapshots(); snaps.add(net, 0); freeze_until(net, None)
    with torch.no_grad(): net.stem[0].weight += 1
    snaps.add(net, 1); freeze_until(net, 'head'); snaps.add(net, 2)
    assert not snaps.problems and not snaps.frames[2]['rows'][0]['still'] and snaps.frames[2]['rows'][0]['state'] == 'frozen'


def test_a_snapshot_leaves_modes_and_random_numbers_alone(net):
    freeze_until(net, 'body').train(); net.body.requires_grad_(True); net.body[0].weight.requires_grad_(False)
    modes = [m.training for m in net.modules()]; torch.manual_seed(3); a = torch.rand(1); torch.manual_seed(3)
    s = Snapshots(X); s.add(net, 0); s.add(net, 1)
    assert torch.rand(1) == a and modes == [m.training for m in net.modules()] and [r['state'] for r in s.frames[1]['rows']] == ['frozen', 'partly', 'train']
    assert not any(m._forward_hooks for m in net.modules())


def test_a_slider_over_networks_stays_in_range(net):
    import copy
    later = []
    for i in range(3): net = copy.deepcopy(net); net.head[0].weight.data += .1 * (i + 1); later.append(net)
    d = DriftView(later[0], later, X); far = [r['change'] for f in d.snapshots.frames for r in f['rows'] if r['stage'] == 'head']
    assert far[0] == far[1] == 0 and far == sorted(far) and d.at == 3
    for wrong, kept in ((-5, 0), (99, 3)): d.set_state(dict(at=wrong)); assert d.at == kept
    d.at = 2; assert 'Snapshot 2' in d.text and 'Snapshot 2' in d.twin().alt


def test_what_cannot_be_compared(net):
    with pytest.raises(ViewError, match='compare a network with itself'): DriftView(net, Net(('stem', 'head')))
    with pytest.raises(ViewError, match="'stem' has other weights"): DriftView(net, Net(norm=nn.LayerNorm))
    with pytest.raises(ViewError, match='empty'): DriftView(Snapshots())
    with pytest.raises(ViewError, match='not|got NoneType'): DriftView(net)
    with pytest.raises(ViewError, match='3 or more'): Snapshots(X[:2])
    assert cka(gram(torch.ones(5, 2)), gram(X[:5])) is None and distance(dict(w=torch.zeros(1)), dict(w=torch.ones(1))) is None
    net.head[0].weight.data.fill_(math.nan); d = DriftView(net, Net(), X); plain(d); drawn(d.twin()); assert 'no number' in d.text


# ---- budget

def test_every_answer_stays_with_what_was_measured():
    s = study(); b = BudgetView(s); plain(b); drawn(b.twin()); kinds = {f['kind'] for f in b.view['frames']}
    assert kinds == {'measured', 'between', 'below', 'above'}
    for f in b.view['frames']:
        assert set(f['near']) <= set(s.budgets) and len(f['columns']) == len(f['near']) and len(f['rows']) == 3
        assert (f['kind'] == 'measured') == (f['labels'] in s.budgets)
        if f['kind'] == 'between': assert f['near'][0] < f['labels'] < f['near'][1] and 'not measured' in f['headline'] and all(f'{n}' in f['headline']
                for n in f['near'])
        if f['kind'] in ('below', 'above'): assert 'nobody measured' in f['words'] and f['near'] == [20 if f['kind'] == 'below' else 200]
    xs = [p['x'] for line in b.view['lines'] for p in line['points']]
    assert min(xs) == b.view['xticks'][0]['at'] > 0 and max(xs) == b.view['xticks'][-1]['at'] < 1           # no line goes beyond a budget


def test_the_answer_is_the_verdict_of_the_study():
    s = study(); t = s.summary(); told = BudgetView(s).ask(50)
    order = t[t.budget == 50].sort_values('mean', ascending=False); best, second = order.plan.iloc[:2]
    assert str(s.verdict(best, second, 50)) in told and 'best of 3 was picked' in told and ' s a run' in told
    rivals = [p for p in order.plan.iloc[1:] if not s.verdict(best, p, 50).detectable]
    assert ('open between' in told) == bool(rivals) and all(p in told.split('.')[0] for p in rivals)
    assert [c for f in BudgetView(s).view['frames'] if f['labels'] == 50 for r in f['rows'] for c in r[1:]] == [
        f'{100 * r["mean"]:.1f}% ({100 * r.low:.1f} to {100 * r.high:.1f}), {r.seconds:.2g} s' for _, r in t[t.budget == 50].iterrows()]


def test_the_answer_counts_other_examples_where_it_is_asked_to():
    s = study(); wide = 'seeds and examples'; b = BudgetView(s, over=wide); told = b.ask(50); t = s.summary(); plain(b); drawn(b.twin())
    best, second = t[t.budget == 50].sort_values('mean', ascending=False).plan.iloc[:2]
    assert str(s.verdict(best, second, 50, over=wide)) in told and str(s.verdict(best, second, 50)) not in told
    assert b.ask(73) and b.ask(50) == told and 'other examples' in b.view['notes'] and 'other examples' not in BudgetView(s).view['notes']
    with pytest.raises(ViewError, match="'all'; it can be"): BudgetView(s, over='all')
    with pytest.raises(ViewError, match='accuracy alone'): BudgetView(s, metric='macro_f1', over=wide)
    for i, r in enumerate(s.runs): r['test'] = i % 2
    with pytest.raises(ViewError, match='different test splits'): BudgetView(s, over=wide)


def test_asking_moves_the_slider():
    b = BudgetView(study(), 50)
    assert b.labels == 50 and 'not measured' in b.ask(73) and b.labels == 73 and 'above all' in b.ask(10**6) and b.at == len(
            b.view['frames']) - 1 and 'below all' in b.ask(1) and b.at == 0
    for odd in (0, -1, 1.5, True, '50', None, math.nan):
        with pytest.raises(ViewError, match='whole number'): b.ask(odd)
    b.set_state(dict(at=10**6)); assert b.at == len(b.view['frames']) - 1


def test_small_and_holey_studies():
    one = BudgetView(study(seeds=1)); plain(one); drawn(one.twin())
    assert 'one seed' in one.text and 'finished 1 common seeds' in one.ask(50) and 'no band' in one.view['notes']
    lone = BudgetView(study(plans=('fine-tuning',), budgets=(30,))); drawn(lone.twin()); assert 'only plan' in lone.ask(30) and 'below all' in lone.ask(16)
    holey = BudgetView(study(lacking={('fine-tuning', 50), ('from scratch', 50), ('feature extraction', 50), ('fine-tuning', 20)})); plain(holey)
    drawn(holey.twin())
    assert 'No run with 50 labels' in holey.ask(50) and 'not run' in holey.twin().text and 'no run has finished' in holey.ask(30)
    with pytest.raises(ViewError, match='no finished run'): BudgetView(study(seeds=0))
    with pytest.raises(ViewError, match='takes a Study, not int'): BudgetView(3)
    many = BudgetView(study(plans=tuple(f'plan {i}' for i in range(12)))); plain(many); drawn(many.twin())
    assert answer(study(), 30)['kind'] == 'between' and stops_of([1, 2])[0] == 1
    drawn(BudgetView(study(), metric='macro_f1').twin())


# ---- all

@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_names_are_shown_and_do_nothing(name):
    names = [name, 'b', 'head']; t = ThawTimeline(Plan(name, [Phase(2, -1), Phase(2, None)]), names)
    net = Net(('a', 'head')); net._modules = {name: net.a, 'head': net.head}; freeze_until(net, 'head'); snaps = Snapshots(X); snaps.name = name
    snaps.add(net, 0); snaps.add(net, 1)
    for view in (t, DriftView(snaps), BudgetView(study(plans=(name, 'b'), name=name))):
        plain(view); root = drawn(view.twin())
        said = json.dumps(view.view, ensure_ascii=False) + view.text
        assert '\u202e' not in said and not any(len(x.text or '') > 300 for x in root.iter() if x.tag.endswith('text'))
        assert all(c.isprintable() or c == '\n' for c in view.text)


def test_facts_of_rows_are_pure():
    names, starts = rows_of(fine_tuning(), RESNET); plan = fine_tuning()
    assert timeline_facts(plan, names, starts) == timeline_facts(plan, names, starts) and edited(plan, names, starts, 'longer')[0] != plan == fine_tuning()
    assert rows_of(feature_extraction(), ['head'])[1] == [None] and timeline_facts(feature_extraction(), ['head'], [None])['phases'][0]['start'] == 0
