"The explorer without a browser: every action, hostile names, undo, bad messages; the live network really changes."
import copy
import json
import logging
import subprocess
import sys
from collections import OrderedDict
from types import SimpleNamespace as Record
from xml.dom.minidom import parseString

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from transfer_course.backbones import StagedModel, attach_head, load_backbone
from transfer_course.backstage.checks import STATE, check_widgets
from transfer_course.backstage.explorer import MARKS, autocast, batch_of, broken, costs_of_epoch, kind_of, named_plans, sizes_of, timed_step
from transfer_course.backstage.text_models import like_lengths
from transfer_course.features import cost_of_cut
from transfer_course.freezing import FreezeReport, cut_of, freeze_part, freeze_until, is_frozen, learning_rates, stages_of, thaw, thaw_part
from transfer_course.training import feature_extraction, fine_tuning, from_scratch, gradual_unfreezing
from transfer_course.widgets import FreezeExplorer

HOSTILE = ['<img src=x onerror=hacked=1>', '"\'`});hacked=1;//', '\u202egnp exe\u202c', '🧊🔥👩‍🚀', 'x' * 500, 'two\nlines\x00\x1b[31m',
           '</script><script>hacked=1</script>', '$&${1}%s{0}', ' ']


def small(names=('stem', 'body', 'head')):
    "A staged network of pictures in miniature, in eval mode."
    def block(i, o): return nn.Sequential(OrderedDict(conv=nn.Conv2d(i, o, 3, padding=1), norm=nn.BatchNorm2d(o), act=nn.ReLU()))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(.1), nn.Linear(6, 2))
    def prepare(x): return torch.as_tensor(np.asarray(x)).permute(0, 3, 1, 2).float().div(255)
    torch.manual_seed(0)
    return StagedModel(dict(zip(names, (block(3, 4), block(4, 6), head))), ['cat', 'dog'], 'small', prepare, None).eval()


def tiny_task(n=12, classes=('cat', 'dog')):
    rng = np.random.default_rng(0)
    def split(k): return Record(inputs=rng.integers(0, 255, (k, 16, 16, 3), dtype=np.uint8), labels=np.arange(k) % 2)
    return Record(train=split(n), valid=split(4), classes=list(classes))


class Embeddings(nn.Module):
    def __init__(self): super().__init__(); self.words, self.norm, self.dropout = nn.Embedding(30, 16), nn.LayerNorm(16), nn.Dropout(.1)
    def forward(self, x): return self.dropout(self.norm(self.words(x)))


class Mean(nn.Module):
    def forward(self, x): return x.mean(1)


def reader():
    "A small transformer as a StagedModel, and its task."
    torch.manual_seed(0)
    layers = {f'layer{i}': nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for i in range(2)}
    def letters(texts): return torch.tensor([[ord(c) % 30 for c in t[:8].ljust(8)] for t in texts])
    model = StagedModel(dict(embeddings=Embeddings(), **layers, head=nn.Sequential(Mean(), nn.Linear(16, 2))), ['bad', 'good'], 'reader', letters, None).eval()
    split = Record(inputs=['an awful lamp', 'a lovely lamp'] * 4, labels=[0, 1] * 4)
    return model, Record(train=split, valid=split, classes=['bad', 'good'])


@pytest.fixture
def explorer(): return FreezeExplorer(small(), tiny_task())


def flags(model): return [p.requires_grad for p in model.parameters()]
def state(model): return flags(model), [(m.training, 'train' in m.__dict__) for m in model.modules()]
def stages(explorer): return {r['name']: r['word'] for r in explorer.view['rows'] if r['level'] == 1}


# parts of a stage

@pytest.mark.parametrize('part', ['body', 'body.conv', 'body.norm', 'head.3'])
def test_part_freezes_alone_and_for_good(part):
    model = thaw(small()).train()
    freeze_part(model, part).train()
    inside = {id(p) for p in model.get_submodule('stages.' + part).parameters()}
    assert [not p.requires_grad for p in model.parameters()] == [id(p) in inside for p in model.parameters()]
    assert is_frozen(model.get_submodule('stages.' + part)) and FreezeReport(model).problems == ([] if part != 'head.3' else FreezeReport(model).problems)


def test_part_thaws_alone_and_hears_train_again():
    model = thaw_part(freeze_until(small(), 'head'), 'body.norm').train()
    norm = model.stages['body'].norm
    assert norm.training and norm.weight.requires_grad and not model.stages['body'].conv.weight.requires_grad and not model.stages['stem'].training
    model.eval(); assert not norm.training
    thaw_part(model.train(), 'body.norm', statistics='keep'); assert not norm.training and norm.weight.requires_grad
    assert cut_of(model) == 'body' and cut_of(freeze_part(model, 'body.norm')) == 'head', 'the last trainable part takes its stage along'


@pytest.mark.parametrize('part', ['nope', 'body.nope', '', 'body.', 'stem.conv.deep'])
def test_unknown_part_is_one_sentence(part):
    for change in (freeze_part, thaw_part):
        with pytest.raises(ValueError, match='There is no'): change(small(), part)
    with pytest.raises(ValueError, match="it can be 'adapt' or 'keep'"): thaw_part(small(), 'body', 'maybe')


# what a click does

@pytest.mark.parametrize('part', ['stem', 'body', 'head', 'body.norm', 'stem.conv', 'head.3'])
def test_toggle_changes_the_live_network(explorer, part):
    module = explorer.model.get_submodule('stages.' + part)
    assert 'frozen' in explorer.toggle(part) and not any(p.requires_grad for p in module.parameters())
    explorer.model.train()
    assert not any(m.training for m in module.modules()), 'and it stays so after .train()'
    assert 'trains' in explorer.toggle(part) and all(p.requires_grad for p in module.parameters()) and module.training


def test_partly_frozen_trains_whole(explorer):
    explorer.toggle('body.conv'); assert stages(explorer)['body'] == 'partly'
    explorer.toggle('body'); assert stages(explorer)['body'] == 'trains' and all(flags(explorer.model))


@pytest.mark.parametrize('k, cut', [(1, 'head'), (2, 'body'), (3, 'stem'), ('body', 'body')])
def test_cut(explorer, k, cut):
    explorer.cut(k)
    assert cut_of(explorer.model) == cut and explorer.view['totals']['k'] == len(stages_of(explorer.model)) - list(stages_of(explorer.model)).index(cut)
    assert explorer.view['cut'] == (None if cut == 'stem' else cut)


@pytest.mark.parametrize('k', [0, 4, -1, True, 1.5, None, 'nope', [1]])
def test_cut_refuses(explorer, k):
    before = state(explorer.model)
    with pytest.raises(ValueError): explorer.cut(k)
    assert state(explorer.model) == before and not explorer.view['undo']


@pytest.mark.parametrize('kind', ['pictures', 'texts'])
def test_presets_are_the_named_plans(kind):
    plans = [make(kind=kind) for make in (feature_extraction, fine_tuning, gradual_unfreezing, from_scratch)]
    assert list(named_plans(kind).values()) == plans and list(named_plans(kind)) == [p.name for p in plans]


def test_texts_get_the_rates_of_texts():
    model, task = reader(); task.kind = 'texts'; explorer, plan = FreezeExplorer(model, task), fine_tuning(kind='texts')
    explorer.preset('fine-tuning')
    assert (explorer.lr, explorer.decay) == (plan.phases[-1].lr, plan.phases[-1].decay) != (fine_tuning().phases[-1].lr, fine_tuning().phases[-1].decay)
    assert cut_of(model) == 'layer0' and f'lr={plan.phases[-1].lr:g}' in explorer.code()
    assert kind_of(attach_head(load_backbone('minilm', pretrained=False, verbose=False), ['bad', 'good'])) == 'texts' and kind_of(small()) == 'pictures'


def test_widgets_load_no_later_lesson():
    code = 'import sys, transfer_course.widgets; print([m for m in ("features", "training", "evaluation", "studies") if f"transfer_course.{m}" in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


def test_presets_freeze_as_their_phases_do():
    for name, plan in named_plans().items():
        explorer = FreezeExplorer(attach_head(load_backbone('pocket-resnet', verbose=False), ['cat', 'dog']))
        for i, phase in enumerate(plan.phases, 1):
            explorer.preset(name, i)
            other = freeze_until(attach_head(load_backbone('pocket-resnet', verbose=False), ['cat', 'dog']), phase.start, plan.statistics)
            assert state(explorer.model) == state(other), (name, i)
            assert [p for q in explorer.view['plans'] if q['name'] == name for p in q['phases']][i - 1]['on']
            assert (explorer.lr, explorer.decay) == (phase.lr, phase.decay)


def test_a_plan_of_ones_own_comes_first():
    explorer = FreezeExplorer(small(), tiny_task(), plan=fine_tuning(batch=4, weight_decay=.5))
    assert [p['name'] for p in explorer.view['plans']] == ['fine-tuning', 'feature extraction', 'gradual unfreezing', 'from scratch'] and explorer.batch == 4
    assert 'weight_decay=0.5' in explorer.code()
    own = FreezeExplorer(small(), plan=Record(name='mine', phases=[Record(start='body', lr=.1)]))
    assert own.preset('mine').startswith('mine: ') and cut_of(own.model) == 'body' and own.view['plans'][0]['name'] == 'mine'
    assert len(own.plans['gradual unfreezing'][1]) == 4, 'phases for stages that are not there are left out'


def test_preset_refuses(explorer):
    for name, phase in (('nope', 1), ('fine-tuning', 3), ('fine-tuning', 0), ('fine-tuning', True), ('fine-tuning', '1')):
        with pytest.raises(ValueError): explorer.preset(name, phase)


def test_norms(explorer):
    explorer.cut(2)
    explorer.norms('keep'); explorer.model.train()
    norm = explorer.model.stages['body'].norm
    assert not norm.training and norm.weight.requires_grad and 'norms still' in next(r for r in explorer.view['rows'] if r['id'] == 'body')['chips']
    explorer.toggle('body'); explorer.toggle('body'); explorer.model.train(); assert not norm.training, 'what is thawed later keeps them too'
    explorer.norms('adapt'); explorer.model.train(); assert norm.training and not explorer.model.stages['stem'].norm.training
    with pytest.raises(ValueError): explorer.norms('maybe')
    assert not FreezeExplorer(reader()[0]).view['norms'], 'no BatchNorm, no such switch'


def test_what_other_code_changed_is_told_anew(explorer):
    "After freezing outside of the explorer: no old gradients, no pressed plan, the true switch, and lines that do the same."
    explorer.preset('fine-tuning', 2)
    if explorer.task is not None: explorer.gradients()
    freeze_until(explorer.model, 'body', statistics='keep')
    assert "statistics='keep'" in explorer.code() and explorer.view['statistics'] == 'keep', 'asked for code, it looks first'
    assert not any(p['on'] for x in explorer.view['plans'] for p in x['phases']) and not any(r['gradient'] for r in explorer.view['rows'])
    freeze_until(explorer.model, 'body'); explorer.twin(); assert explorer.view['statistics'] == 'adapt' and 'keep' not in explorer.code()
    explorer.preset('fine-tuning', 2); explorer.model.eval(); explorer.twin()
    assert any(p['on'] for x in explorer.view['plans'] for p in x['phases']), 'inference mode is no other freezing'
    freeze_until(explorer.model, 'head', statistics='keep'); assert FreezeExplorer(explorer.model).statistics in ('adapt', 'keep')


def test_undo_goes_all_the_way_back(explorer):
    freeze_until(explorer.model, 'body'); explorer.refresh()
    seen = [state(explorer.model)]
    for act in (lambda: explorer.toggle('stem'), lambda: explorer.toggle('body.norm'), lambda: explorer.cut(1), lambda: explorer.preset('fine-tuning', 2),
                lambda: explorer.norms('adapt'), lambda: explorer.toggle('head')): act(); seen.append(state(explorer.model))
    for was in seen[-2::-1]: explorer.undo(); assert state(explorer.model) == was
    assert explorer.undo() == 'There is nothing to undo.' and (explorer.statistics, explorer.lr) == ('adapt', 1e-3) and not explorer.view['undo']
    explorer.model.train(); assert explorer.model.stages['body'].norm.training and not explorer.model.stages['stem'].norm.training


def test_failed_change_leaves_no_trace(explorer, monkeypatch):
    before = state(explorer.model)
    with pytest.raises(ValueError): explorer.toggle('body.act')
    with pytest.raises(ValueError, match='no weights'): explorer.toggle('head.2')
    assert state(explorer.model) == before and not explorer.view['undo']


# what the browser sends

BAD = [None, 0, '', [], {}, 'toggle', dict(do=None), dict(do=[]), dict(do='toggle'), dict(do='toggle', id=None), dict(do='toggle', id=['stem']),
       dict(do='toggle', id='stem', x=1),
       dict(do='cut', k='2'), dict(do='cut', k=True), dict(do='cut', k=2.), dict(do='preset', name='fine-tuning'), dict(do='preset', name=1, phase=1),
       dict(do='statistics', to=None), dict(do='close'), dict(do='__class__'), dict(do='refresh'), dict(do='_show', said='x'), dict(id='stem')]


@pytest.mark.parametrize('message', BAD, ids=repr)
def test_senseless_messages_are_ignored_and_logged(explorer, message, caplog):
    before, view = state(explorer.model), explorer.view
    with caplog.at_level(logging.WARNING): explorer._hear(explorer, message, [])
    assert state(explorer.model) == before and explorer.view is view and 'ignored it' in caplog.text and '\n' not in caplog.records[0].getMessage()


UNKNOWN = [dict(do='toggle', id=h) for h in [*HOSTILE, 'stem.nope', '../stem', 'body.act']] + [dict(do='cut', k=k) for k in (99, 0)] + [
    dict(do='preset', name='nope', phase=1), dict(do='preset', name='fine-tuning', phase=-1), dict(do='statistics', to='x' * 999)]


@pytest.mark.parametrize('message', UNKNOWN, ids=lambda m: ascii(m)[:40])
def test_unknown_names_change_nothing_and_are_told(explorer, message, caplog):
    before = state(explorer.model)
    with caplog.at_level(logging.WARNING): explorer._hear(explorer, message, [])
    assert state(explorer.model) == before and explorer.view['said'] and len(explorer.view['said']) < 300 and 'could not' in caplog.text


def test_messages_do_what_methods_do():
    by_click, by_code = FreezeExplorer(small(), tiny_task()), FreezeExplorer(small(), tiny_task())
    for message, act in ((dict(do='toggle', id='stem'), lambda: by_code.toggle('stem')), (dict(do='cut', k=2), lambda: by_code.cut(2)),
                         (dict(do='preset', name='fine-tuning', phase=2), lambda: by_code.preset('fine-tuning', 2)),
                         (dict(do='statistics', to='adapt'), lambda: by_code.norms('adapt')),
                         (dict(do='undo'), by_code.undo), (dict(do='gradients'), by_code.gradients)):
        by_click._hear(by_click, message, []); act()
        assert state(by_click.model) == state(by_code.model) and by_click.view == by_code.view, message
    by_click._hear(by_click, dict(do='measure'), []); assert by_click.view['totals']['basis'] == 'from one measured step'


def test_hello_is_answered(explorer, monkeypatch):
    sent = []
    monkeypatch.setattr(explorer, 'send', sent.append)
    explorer._hear(explorer, dict(do='hello'), [])
    assert sent == [dict(alive=True)]


# facts

def test_everything_shown_comes_from_the_report(explorer):
    explorer.cut(2)
    report = FreezeReport(explorer.model, learning_rates(explorer.model, 1e-3, 1., .01), explorer.model.preprocess(tiny_task().train.inputs[:1]))
    rows = {r['id']: r for r in explorer.view['rows']}
    assert len(rows) == len(report.rows)
    for r in report.rows:
        row = rows[f'{r["stage"]}.{r["module"]}' if r['module'] else r['stage']]
        assert row['word'] == MARKS[r['state']][0] and (not r['parameters'] or row['parameters'].startswith(f'{r["parameters"]:,}'))
        assert row['rate'] == ('' if not r['parameters'] else '0.001' if r['lr'] else '–')
        assert row['trained'] == (r['trainable'] / r['parameters'] if r['parameters'] else 0)
    json.dumps(explorer.view)                                   # nothing in it that a browser could not read


def test_optimizer_of_ones_own():
    model = freeze_until(small(), 'head')
    optimizer = torch.optim.AdamW(learning_rates(model, 1e-2))
    explorer = FreezeExplorer(model, optimizer=optimizer)
    assert not explorer.view['problems']
    explorer.toggle('body')
    body = next(r for r in explorer.view['rows'] if r['id'] == 'body')
    assert body['held'] == 'nothing of it' and body['rate'] == '–' and 'lacks trainable parameters' in explorer.view['problems'][0]
    explorer.optimizer = None; explorer.refresh()
    assert not explorer.view['problems'] and next(r for r in explorer.view['rows'] if r['id'] == 'body')['held'] == 'all of it'


def test_optimizer_that_holds_what_is_frozen(explorer):
    explorer.optimizer = torch.optim.SGD(explorer.model.parameters(), .1); explorer.cut(1)
    assert len([p for p in explorer.view['problems'] if 'holds frozen parameters' in p]) == 2


def test_rates_fall_towards_the_input(explorer):
    explorer.preset('fine-tuning', 2)
    rates = [float(r['rate']) for r in explorer.view['rows'] if r['level'] == 1]
    assert rates == pytest.approx([1e-3, .7e-3, .49e-3])


def test_changes_from_outside_are_seen(explorer):
    freeze_until(explorer.model, 'head'); assert stages(explorer)['stem'] == 'trains'
    explorer.refresh(); assert stages(explorer) == dict(stem='frozen', body='frozen', head='trains')
    thaw(explorer.model); explorer.toggle('stem'); assert stages(explorer)['stem'] == 'frozen', 'a click judges what is, not what was'


def test_none_zero_and_some_gradient(explorer):
    explorer.cut(2)
    with torch.no_grad(): explorer.model.stages['head'][3].weight.zero_()
    before = {k: v.clone() for k, v in explorer.model.state_dict().items()}
    found = explorer.gradients().gradient
    assert found['stem'] == 'no gradient' and found['body'] == 'zero' and float(found['head']) > 0
    assert all(torch.equal(v, before[k]) for k, v in explorer.model.state_dict().items()) and not explorer.model.training
    assert all(p.grad is None for p in explorer.model.parameters())
    assert 'gradient' in explorer.table(); explorer.toggle('stem'); assert 'gradient' not in explorer.table(), 'a change makes them old'
    explorer.cut(1); explorer.toggle('head'); assert set(explorer.gradients().gradient) == {'no gradient'}


def test_measuring_leaves_the_network_alone(explorer):
    explorer.toggle('body.conv'); before = state(explorer.model), copy.deepcopy(explorer.model.state_dict()), torch.get_rng_state()
    assert 'was measured' in explorer.measure()
    assert state(explorer.model) == before[0] and torch.equal(torch.get_rng_state(), before[2])
    assert all(torch.equal(v, before[1][k]) for k, v in explorer.model.state_dict().items())


def timing_of(**parts):
    stage = dict(still=1., forward=2., backward=4., kept=10., fetch=.25)
    return dict(stages=dict(stem=dict(stage), body=dict(stage), head=dict(stage)), draw=.5, crop=.125, step=8., alone=20., look=7., parameters=368,
                examples=4) | parts


def test_seconds_follow_from_the_measured_parts():
    "12 training and 4 validation examples in batches of 4: every second accounted for."
    model, sizes = small(), {'stem': (100, 1), 'body': (50, 1), 'head': (8, 1)}
    full = {r['stage']: r['backward'] for r in FreezeReport(thaw(copy.deepcopy(model))).stages}
    def costs(start, **more): return costs_of_epoch(FreezeReport(freeze_until(model, start)).stages, sizes, 12, 4, 4, timing_of(), full, **more)
    all_, head = costs(None), costs('head')
    back = 4 * FreezeReport(freeze_until(model, 'head')).stages[-1]['backward'] / full['head']
    rest = 20 - 4 * (2 + back)                                         # of a step of the head alone, besides its two ways
    assert all_['seconds'] == pytest.approx(12 * 3 * 6 + 3 * (rest + 8) + 7 + 4 * 3 + 12 * .5) and all_['below'] == 0 and all_['kept'] == 0
    assert costs(None, crops=True)['seconds'] == pytest.approx(all_['seconds'] + 12 * .125) and all_['once'] == 0
    part = 14 / 368                                                    # of the parameters is in the head
    above = 12 * (2 + back) + 3 * (rest + 8 * part) + 7 + 4 * (1 + .25)
    assert head['cached'] == pytest.approx(above + 12 * .25) and head['seconds'] == pytest.approx(above + 12 * (2 + .5))
    assert costs('head', crops=True)['cached'] == head['cached'], 'what is kept is not cropped'
    assert head['once'] == 16 * (2 + .5) and head['kept'] == 12 * 50 and head['memory'] == 4 * (368 + 3 * 14) + 4 * 10
    assert all_['memory'] == 4 * 4 * 368 + 3 * 4 * 10


def test_a_step_of_the_head_alone_is_told_as_it_was_measured():
    "What `fit` does in a step of the head, to the microsecond: fetching its features, and one whole step."
    explorer = FreezeExplorer(small(), tiny_task(), plan=feature_extraction(batch=4)); explorer.preset('feature extraction'); explorer.measure()
    t = explorer._timing; share = 14 / 368
    look = t['look'] + 4 * (t['stages']['head']['fetch'] + t['stages']['head']['still'])
    assert explorer.costs['cached'] == pytest.approx(12 * t['stages']['head']['fetch'] + 3 * (t['alone'] + t['step'] * share) + look)


def test_texts_are_timed_in_a_batch_of_like_and_typical_length():
    model = attach_head(load_backbone('minilm', pretrained=False, verbose=False), ['bad', 'good'])
    texts = [' '.join(['lamp'] * (3 + 7 * i % 60)) for i in range(256)]
    task = Record(train=Record(inputs=texts, labels=np.arange(256) % 2), valid=None, classes=['bad', 'good'])
    x, y = batch_of(model, task, 16)
    sizes = model.preprocess(texts)['mask'].sum(1)
    dealt = [sizes[rows] for rows in like_lengths(sizes, 256 // 16, torch.Generator().manual_seed(1))]
    usual = float(np.mean([s.max() for s in dealt]))
    assert len(y) == len(x['ids']) == 16 and abs(x['ids'].shape[1] / usual - 1) < .25 and x['mask'].float().mean() > .7
    one, _ = batch_of(model, task, 1); assert abs(one['ids'].shape[1] / float(sizes.float().mean()) - 1) < .25


def test_cropping_counts_where_the_plan_crops():
    explorer = FreezeExplorer(small(), tiny_task()); explorer.measure(); explorer.preset('fine-tuning', 2); cropped = explorer.costs['seconds']
    explorer.cut(3); assert explorer.costs['seconds'] == pytest.approx(cropped - 12 * explorer._timing['crop'])


def test_frozen_features_cost_as_lesson_06_counts():
    model = freeze_until(attach_head(load_backbone('pocket-resnet', verbose=False), ['cat', 'dog']), 'layer4')
    pictures = np.zeros((5, 64, 64, 3), np.uint8)
    cost, example = cost_of_cut(model, pictures, 'layer4'), model.preprocess(pictures[:1])
    rows = FreezeReport(model, None, example).stages
    costs = costs_of_epoch(rows, sizes_of(model, example), 5, 0, 5)
    assert sum(r['forward'] for r in rows[:costs['below']]) == cost['below'] and costs['kept'] == 5 * cost['bytes']
    assert sum(r['forward'] + r['backward'] for r in rows[4:]) <= 3 * cost['above'], 'the report leaves out the gradient that nobody needs'


def test_one_step_in_pieces_is_one_step():
    "Stage by stage the same gradients come out as in one backward pass."
    from transfer_course.backstage.explorer import _one_pass
    model, task = small(), tiny_task()
    for m in model.modules():
        if isinstance(m, nn.Dropout): m.p = 0.
    whole = copy.deepcopy(model).train(); x, y = batch_of(model, task)
    with autocast('cpu'): out = whole(x)
    nn.functional.cross_entropy(out.float(), y).backward(); nn.utils.clip_grad_norm_(whole.parameters(), 1.)
    parts, seconds = _one_pass(model.train(), torch.optim.SGD(model.parameters(), 0.), x, y)
    assert all(torch.allclose(p.grad, q.grad, atol=1e-6) for p, q in zip(model.parameters(), whole.parameters())) and seconds > 0
    assert all(v['kept'] >= 0 and v['forward'] > 0 and v['backward'] > 0 for v in parts.values())


def test_arithmetic_is_in_the_same_precision_as_in_lesson_06():
    from transfer_course import features
    assert features.autocast is autocast


def test_code_does_the_same(explorer):
    acts = [lambda: explorer.cut(2), lambda: explorer.toggle('stem'), lambda: explorer.toggle('body.norm'), lambda: explorer.preset('fine-tuning', 2),
            lambda: explorer.toggle('head'), lambda: explorer.cut(1), lambda: explorer.toggle('stem.conv')]
    for act in acts:
        act(); names = dict(model=small()); exec(explorer.code(), names)
        assert flags(names['model']) == flags(explorer.model) and FreezeReport(names['model']).problems == FreezeReport(explorer.model).problems
        held = [g['lr'] for g in names['optimizer'].param_groups] if any(flags(explorer.model)) else []
        assert held == [g['lr'] for g in learning_rates(explorer.model, explorer.lr, explorer.decay, .01)]


def test_code_of_what_no_code_would_do():
    model, _ = broken(1, small())
    assert "# 'stem' takes no gradient and yet is not frozen" in FreezeExplorer(model).code()


# any network

def networks():
    yield 'pocket', attach_head(load_backbone('pocket-resnet', verbose=False), ['cat', 'dog']), None
    net = torchvision.models.resnet18()
    yield 'plain resnet18', net, None
    stages = dict(stem=nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)) | {f'layer{i}': getattr(net, f'layer{i}') for i in (1, 2, 3, 4)}
    stages['head'] = nn.Sequential(net.avgpool, nn.Flatten(), net.fc)
    yield 'staged resnet18', StagedModel(stages, [str(i) for i in range(1000)], 'resnet18', small().preprocess, None).eval(), tiny_task(4)
    yield ('reader', *reader())


@pytest.mark.parametrize('name, model, task', [pytest.param(*n, id=n[0]) for n in networks()])
def test_any_network(name, model, task):
    explorer = FreezeExplorer(model, task); n = len(stages_of(model))
    explorer.cut(1); assert all(w in ('frozen', 'no weights') for w in list(stages(explorer).values())[1:])
    explorer.cut(n); assert all(flags(model))
    deepest = max((r for r in explorer.view['rows'] if r['can']), key=lambda r: r['level'])
    explorer.toggle(deepest['id']); assert sum(map(bool, flags(model))) < len(flags(model)); explorer.undo(); assert all(flags(model))
    if task: explorer.measure(); explorer.gradients(); assert explorer.costs['seconds'] > 0
    else:
        for act in (explorer.measure, explorer.gradients):
            with pytest.raises(ValueError, match='give task='): act()
    assert parseString(explorer.twin().svg)


def test_untimeable_network_says_so():
    with pytest.raises(ValueError, match='Only a StagedModel'): timed_step(nn.Sequential(nn.Linear(2, 2)), tiny_task())


# still pictures and names

@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_names_in_picture_words_and_code(name):
    model = small(('stem', name, 'head')); model.backbone = name
    explorer = FreezeExplorer(model, tiny_task(), plan=Record(name=name, phases=[Record(start=name, lr=1.)]))
    explorer.toggle(name); explorer.opened = [name]
    twin = explorer.twin(); drawn = parseString(twin.svg)
    assert not any(drawn.getElementsByTagName(t) for t in ('img', 'script', 'foreignObject', 'a')) and '\n' not in twin.alt and twin.alt.isprintable()
    assert all(line.isprintable() for line in twin.text.split('\n')) and repr(explorer).isprintable() and len(repr(explorer)) < 300
    names = dict(model=small(('stem', name, 'head'))); exec(explorer.code(), names); assert flags(names['model']) == flags(model)
    assert explorer.preset(name).isprintable() and explorer.view['name'].isprintable()


def test_shown_as_widget_and_picture(explorer, monkeypatch):
    from transfer_course.backstage import explorer as module
    shown = []
    monkeypatch.setattr(module, 'display', lambda x, **how: shown.append((x, how)))
    explorer._ipython_display_()
    (bundle, how), (twin, more) = shown
    assert bundle['application/vnd.jupyter.widget-view+json']['model_id'] == explorer.model_id and bundle['text/plain'] == repr(explorer)
    assert how == dict(raw=True) and more == dict(display_id=True)
    data, about = twin._repr_mimebundle_()
    assert set(data) == {'image/svg+xml', 'text/plain'} and 'stem: trains' in about['image/svg+xml']['alt'] and data['text/plain'].startswith('small: ')
    assert {'view', 'opened', '_esm', '_css'} <= set(explorer.get_state())


def test_picture_follows_the_browser(explorer):
    seen = []
    explorer._pictures = [Record(update=seen.append)]
    explorer._hear(explorer, dict(do='toggle', id='stem'), []); explorer.toggle('body')
    assert len(seen) == 1 and 'stem: frozen' in seen[0].alt, 'clicks renew the picture; code leaves what was shown before as it is'


def test_hidden_contradictions_are_not_told_by_the_picture():
    model, optimizer = broken(2, small())
    for explain in (True, False):
        twin = FreezeExplorer(model, optimizer=optimizer, explain=explain).twin()
        assert all(('lacks trainable' in t) == explain for t in (twin.svg, twin.alt, twin.text)) and '1 contradiction' in twin.text or explain


@pytest.mark.parametrize('number', [1, 2, 3, 4])
def test_broken_networks_are_broken_in_one_way(number):
    model, optimizer = broken(number, attach_head(load_backbone('pocket-resnet', verbose=False), ['cat', 'dog']))
    problems = FreezeReport(model, optimizer).problems
    assert bool(problems) == (number < 3) and len({p.split("'")[0] for p in problems}) <= 1
    with pytest.raises(ValueError): broken(5, model)


def test_lesson_stores_widgets_with_state_and_pictures(root):
    notebook = json.loads((root/'nbs'/'05_seeing_frozen_layers.ipynb').read_text())
    state_ = notebook['metadata']['widgets'][STATE]['state']
    views = [(i, c) for i, c in enumerate(notebook['cells']) for o in c.get('outputs', []) if 'application/vnd.jupyter.widget-view+json' in o.get('data', {})]
    assert views and check_widgets(root) == [] and any(v['model_name'] == 'AnyModel' and v['state']['view'] for v in state_.values())
    def pictures(c): return [k for o in c.get('outputs', []) for k in o.get('data', {}) if k.startswith('image/')]
    for i, c in views:     # an explorer has its picture beside it; the other views show theirs a few cells further on, after an edit
        near = pictures(c) or [k for later in notebook['cells'][i + 1:i + 6] for k in pictures(later)]
        assert near == ['image/svg+xml'], (i, 'each widget has a picture beside it, or soon after')
