"Freezing, training and evaluation keep their promises on small tasks."
import copy
import json
import math
import os
import pickle
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, dark_and_light
from safetensors.torch import save_file
from torch import nn

import transfer_course.training as training
from transfer_course.backbones import attach_head, load_backbone
from transfer_course.evaluation import Report, evaluate, mean_interval, wilson
from transfer_course.features import FeatureCache, autocast
from transfer_course.freezing import cut_of, freeze_until, is_frozen, learning_rates, stages_of, thaw
from transfer_course.tasks import Split, Task
from transfer_course.training import History, Phase, Plan, TrainingError, augment, feature_extraction, fine_tuning, fit, from_scratch, gradual_unfreezing
from transfer_course.training import learning_rate_range, mixup, run, schedule


@pytest.fixture(scope='module')
def task(): return dark_and_light()


@pytest.fixture
def model(task):
    return attach_head(load_backbone('pocket-resnet', pretrained=False), task, dropout=.2)


def state(model): return {k: v.clone() for k, v in model.state_dict().items()}
def moved(before, after): return {k.split('.')[1] for k in before if not torch.equal(before[k], after[k])}


@pytest.mark.parametrize('start', ['layer1', 'layer3', 'layer4', 'head', -1, -2])
@pytest.mark.parametrize('augmented', [True, False])
def test_frozen_stages_come_out_bit_for_bit(model, task, start, augmented):
    before = state(model)
    fit(model, task, Plan('p', [Phase(2, start, 1e-2, augment=augmented)], batch=8), progress=False)
    names = list(stages_of(model)); cut = names.index(start) if isinstance(start, str) else len(names) + start
    assert moved(before, state(model)) == set(names[cut:])


def test_frozen_survives_train_copy_and_pickle(model):
    freeze_until(model, 'layer3')
    for m in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        m.train(); m.stages['layer1'].train(); m.apply(lambda x: x.train())
        assert is_frozen(m.stages['layer1']) and is_frozen(m.stages['layer2']) and not is_frozen(m.stages['layer3'])
        before = state(m); m(torch.randn(4, 3, 48, 48))
        assert moved(before, state(m)) == {'layer3', 'layer4'}


def test_a_copy_stays_frozen_by_itself(model):
    freeze_until(model, 'head'); other = copy.deepcopy(model); thaw(model)
    other.train(); assert not other.stages['layer1'].training
    model.train(); assert model.stages['layer1'].training


def test_thaw_gives_back_mode_and_gradient(model):
    model.train(); freeze_until(model, 'head'); thaw(model, 'layer4')
    assert cut_of(model) == 'layer4' and model.stages['layer4'].training and all(p.requires_grad for p in model.stages['layer4'].parameters())
    assert cut_of(freeze_until(model, None)) == 'stem'


def test_freezing_any_network():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    freeze_until(net, -1); net.train(); before = state(net); net(torch.randn(8, 3)).sum().backward()
    assert net[0].weight.grad is None and net[3].weight.grad is not None and all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    class Loose(nn.Module):
        def __init__(self): super().__init__(); self.scale = nn.Parameter(torch.ones(1)); self.body = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="'scale' belongs to no stage"): freeze_until(Loose(), -1)


def test_old_momentum_moves_nothing_that_is_frozen(model):
    opt = torch.optim.SGD(model.parameters(), .1, momentum=.9, weight_decay=.1)
    model(torch.randn(4, 3, 48, 48)).sum().backward(); opt.step()
    freeze_until(model, 'head'); before = state(model)
    for _ in range(3): model.train(); model(torch.randn(4, 3, 48, 48)).sum().backward(); opt.step()
    assert moved(before, state(model)) == {'head'}


def test_learning_rates_by_stage(model):
    groups = learning_rates(freeze_until(model, 'layer3'), 1e-2, .5, .1)
    assert {g['stage']: g['lr'] for g in groups} == dict(layer3=.0025, layer4=.005, head=.01)
    assert all((p.ndim > 1) == (g['weight_decay'] > 0) for g in groups for p in g['params'])
    held = [id(p) for g in groups for p in g['params']]
    assert len(held) == len(set(held)) and set(held) == {id(p) for p in model.parameters() if p.requires_grad}


PLANS = [from_scratch(2), feature_extraction(2), fine_tuning(1, head_epochs=1), gradual_unfreezing(1, 3, last=1)]

@pytest.mark.parametrize('plan', PLANS, ids=lambda p: p.name)
def test_same_seed_same_bits(task, plan):
    def go(seed):
        m = attach_head(load_backbone('pocket-resnet'), task, dropout=.3); h = fit(m, task, plan, seed, progress=False)
        assert len(h.rows) == plan.epochs and not m.training
        return state(m), h.table.drop(columns='seconds')
    torch.manual_seed(1); a, ta = go(0)
    torch.manual_seed(2); b, tb = go(0)
    c, _ = go(1)
    assert all(torch.equal(a[k], b[k]) for k in a) and ta.equals(tb) and any(not torch.equal(a[k], c[k]) for k in a)


def test_fit_leaves_the_global_generator_alone(model, task):
    torch.manual_seed(5); want = torch.rand(1)
    torch.manual_seed(5); fit(model, task, from_scratch(1), progress=False)
    assert torch.equal(torch.rand(1), want)


def test_fit_never_reads_the_test_split(model, task):
    def forbidden(): raise AssertionError('the test split was read')
    blind = Task('blind', 'pictures', task.classes, task.train, task.valid, Split('test', forbidden, task.test.labels, task.test.ids))
    fit(model, blind, fine_tuning(1, head_epochs=1), progress=False)


def test_cached_features_equal_uncached(task):
    "One step from features computed once, and one from pictures, give the same head within bf16's rounding."
    def go(augmented_but_still):
        m = attach_head(load_backbone('pocket-resnet'), task)
        m.to(memory_format=torch.channels_last); freeze_until(m, 'head')
        with torch.no_grad(): direct = m(m.preprocess(task.train.inputs))
        cached = run(m, run(m, task.train.inputs, stop='head', exact=True), start='head', exact=True)
        return direct, cached
    direct, cached = go(False)
    assert torch.allclose(direct, cached, atol=1e-4)


def test_training_learns(task):
    m = attach_head(load_backbone('pocket-resnet'), task)
    fit(m, task, feature_extraction(20, batch=8), progress=False)
    assert evaluate(m, task.test).accuracy == 1


def test_nan_is_stopped_with_a_sentence(model, task):
    with torch.no_grad(): model.stages['stem'].conv1.weight.fill_(float('nan'))
    with pytest.raises(TrainingError, match='lower its learning rate'): fit(model, task, fine_tuning(1, head_epochs=0), progress=False)
    with pytest.raises(ValueError, match='no numbers'): evaluate(model, task.test)


def test_interrupt_keeps_what_was_learned(model, task, monkeypatch):
    calls, real = [], training.augment
    def stop_later(*a, **k):
        calls.append(1)
        if len(calls) > 4: raise KeyboardInterrupt
        return real(*a, **k)
    monkeypatch.setattr(training, 'augment', stop_later)
    h = fit(model, task, from_scratch(9, batch=8), progress=False)
    assert h.stopped and len(h.rows) == 2 and not model.training and h.plot()


def test_a_last_picture_is_never_alone(model, task):
    rows = Task('odd', 'pictures', task.classes, task.train.subset(range(9)), task.valid, task.test)
    fit(model, rows, from_scratch(1, batch=8), progress=False)
    fit(model, Task('few', 'pictures', task.classes, task.train.subset(range(3)), task.valid, task.test), from_scratch(1, batch=32), progress=False)


def test_crops_come_from_the_whole_picture_and_are_as_large_as_its_middle(task, monkeypatch):
    drawn, looked = [], []
    def spied(x, generator=None, crop=.5, size=None): drawn.append((tuple(x.shape[2:]), size)); return augment(x, generator, crop, size)
    monkeypatch.setattr(training, 'augment', spied); side = task.train.inputs.shape[1]; middle = round(.75 * side)
    model = attach_head(load_backbone('pocket-resnet', centre=.75, verbose=False), task)
    model.stages['stem'].register_forward_pre_hook(lambda m, args: looked.append(tuple(args[0].shape[2:])))
    fit(model, task, Plan('p', [Phase(1, None)]), progress=False)
    assert set(drawn) == {((side, side), (middle, middle))} and set(looked) == {(middle, middle)}
    edges = task.valid.inputs[:].copy(); border = (side - middle) // 2 - 1; edges[:, :border] = 255; edges[:, :, -border:] = 0
    assert torch.equal(run(model, edges), run(model, task.valid.inputs)), 'what lies outside of the middle counts for nothing'
    drawn.clear(); fit(model, task, Plan('p', [Phase(1, None, sizes=[side // 2])]), progress=False); assert drawn[0][1] == (side // 2,) * 2
    drawn.clear(); fit(head_on(task), task, Plan('p', [Phase(1, None)]), progress=False); assert set(drawn) == {((side, side), None)}


def test_augment_moves_pictures_within_their_range():
    x = torch.rand(16, 3, 32, 40); y = augment(x, torch.Generator().manual_seed(0), .3)
    assert y.shape == x.shape and y.min() >= x.min() - 1e-5 and y.max() <= x.max() + 1e-5
    assert augment(x, torch.Generator().manual_seed(0), size=(8, 8)).shape == (16, 3, 8, 8)


def test_report_figures():
    r = Report('test', ['a', 'b'], np.array([0, 0, 1, 1]), np.array([[.9, .1], [.2, .8], [.3, .7], [.4, .6]]))
    assert r.accuracy == .75 and r.confusion.tolist() == [[1, 1], [0, 2]] and abs(r.table.loc['b', 'precision'] - 2 / 3) < 1e-9
    assert r.interval == wilson(3, 4) and '75.0%' in repr(r) and r.plot()
    hostile = Report('test', ['<img src=x>', '$a'], np.array([0, 1]), np.eye(2))
    assert '<img' not in hostile._repr_html_() and hostile.plot()


def test_intervals_refuse_nothing():
    with pytest.raises(ValueError, match='at least one'): wilson(0, 0)
    with pytest.raises(ValueError, match='two seeds'): mean_interval([1.])


def test_empty_split_is_one_sentence(model, task):
    with pytest.raises(ValueError, match='empty'): evaluate(model, task.test.subset([]))


# What `fit` was before it had options: weights made with it must come out the same today.

def plain_fit(model, task, plan, seed=0):
    model.to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.as_tensor(task.train.labels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for phase in plan.phases:
            freeze_until(model, phase.start, plan.statistics)
            cut = cut_of(model); once = cut != model.names[0] and not phase.augment
            inputs = run(model, task.train.inputs, stop=cut) if once else task.train.inputs
            opt = torch.optim.AdamW(learning_rates(model, phase.lr, phase.decay, plan.weight_decay), fused=True)
            per_epoch = max(1, len(labels) // plan.batch)
            sched = torch.optim.lr_scheduler.LambdaLR(opt, partial(schedule, steps=phase.epochs * per_epoch, warmup=plan.warmup))
            for _ in range(phase.epochs):
                model.train()
                for rows in torch.randperm(len(labels), generator=generator).tensor_split(per_epoch):
                    x = inputs[rows] if once else model.preprocess(inputs[rows.numpy()])
                    if phase.augment: x = augment(x, generator, plan.crop)
                    with autocast('cpu'): logits = model(x, start=cut if once else None)
                    loss = F.cross_entropy(logits.float(), labels[rows], label_smoothing=plan.smoothing)
                    opt.zero_grad(); loss.backward()
                    torch.nn.utils.clip_grad_norm_([p for g in opt.param_groups for p in g['params']], plan.clip)
                    opt.step(); sched.step()


def head_on(task, **more): return attach_head(load_backbone('pocket-resnet', verbose=False), task, **more)
def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize('plan', [fine_tuning(2, head_epochs=2, batch=8), gradual_unfreezing(1, 2, last=1, batch=5)], ids=lambda p: p.name)
def test_without_options_the_weights_are_those_of_the_plain_loop(task, plan):
    a, b = head_on(task, dropout=.2), head_on(task, dropout=.2)
    plain_fit(a, task, plan); fit(b, task, plan, progress=False, device='cpu')
    assert same(state(a), state(b))


def test_plans_read_as_in_the_results_files():
    assert repr(from_scratch()) == 'from scratch: 20 epochs from the input at 0.001, from random weights'
    assert repr(feature_extraction()) == 'feature extraction: 40 epochs from the head at 0.003'
    assert repr(fine_tuning()) == ('fine-tuning: 5 epochs from the head at 0.01; then 15 epochs from the input at 0.001, '
                                   'each stage below at 0.7 times that, BatchNorm statistics kept')
    assert repr(from_scratch(1, patience=3, mixup=.2)).endswith('at 0.001, patience 3, mixup 0.2, from random weights')


@pytest.mark.parametrize('wrong', [dict(schedule='line'), dict(dropout=1), dict(dropout=-.1), dict(patience=0), dict(patience=1.5), dict(average=1.),
                                   dict(mixup=-1), dict(mixup=float('nan')), dict(cache='yes'), dict(cache=None)], ids=str)
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=f'{next(iter(wrong))} is .* it can be'): from_scratch(1, **wrong)


@pytest.mark.parametrize('wrong', [(0,), (48., 64.), (-8,), ('64',)], ids=str)
def test_sizes_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match='sides of pictures'): fine_tuning(sizes=wrong)
    with pytest.raises(ValueError, match='augment=True'): Phase(1, augment=False, sizes=(64,))


def test_crops_grow_through_a_phase(model, task, monkeypatch):
    "Each size has its share of the epochs, and the plan says so, also after a trip through a file."
    seen, real = [], training._step
    monkeypatch.setattr(training, '_step', lambda model, x, *a: seen.append(x.shape[-2:]) or real(model, x, *a))
    plan = Plan('growing', [Phase(1, -1, augment=False), Phase(5, None, sizes=[24, 32])], batch=len(task.train))
    history = fit(model, task, plan, progress=False)
    assert seen[1:] == [torch.Size([s, s]) for s in (24, 24, 24, 32, 32)], "the first step is of the head, from features"
    assert repr(plan).endswith('5 epochs from the input at 0.001, crops of 24, then 32 pixels')
    assert History.from_dict(json.loads(json.dumps(history.to_dict()))).plan == plan


def test_schedules_stay_between_zero_and_one():
    for shape in ('cosine', 'one-cycle'):
        for steps in (1, 2, 3, 10, 57):
            for warmup in (0, .2, .5, 1):
                factors = [schedule(i, steps, warmup, shape) for i in range(steps)]
                assert 0 < max(factors) <= 1 and min(factors) >= 0
    rise = [schedule(i, 50, .2, 'one-cycle') for i in range(50)]
    assert abs(rise[0] - 1 / 25) < 1e-12 and rise[9] == 1 and rise[-1] < 3e-3 and rise[:10] == sorted(rise[:10])


def test_mixup_mixes_inputs_and_labels_alike():
    x, y = torch.eye(4), torch.tensor([0, 1, 2, 3])
    mixed, p = mixup(x, y, 4, .5, torch.Generator().manual_seed(3))
    assert torch.allclose(mixed, p) and not torch.equal(mixed, x)
    assert torch.equal(mixup(x, y, 4, .5, torch.Generator().manual_seed(3))[0], mixed)


# What is computed once

def test_features_are_computed_once_or_not_and_it_is_said(task, monkeypatch):
    def go(plan):
        m, calls = head_on(task), []
        m.stages['stem'].register_forward_hook(lambda *a: calls.append(1))
        return fit(m, task, plan, progress=False), len(calls), state(m)
    auto, often, a = go(feature_extraction(6, batch=8))
    off, oftener, b = go(feature_extraction(6, batch=8, cache=False))
    assert often == 3 and oftener == 1 + 6 * 2                 # one example counted, train and valid; valid, and two batches in each epoch
    assert auto.phases[0]['once'] and auto.phases[0]['why'] == 'features computed once: 6 epochs would have run the frozen part 6 times'
    assert not off.phases[0]['once'] and 'cache=False' in off.phases[0]['why'] and auto.phases[0]['why'] in auto._repr_html_()
    assert all(torch.allclose(a[k].float(), b[k].float(), atol=2e-2) for k in a)
    both = fit(head_on(task), task, fine_tuning(1, head_epochs=1), progress=False)
    assert [p['once'] for p in both.phases] == [True, False] and 'every stage trains' in both.phases[1]['why']
    crops = fit(head_on(task), task, feature_extraction(1, augment=True), progress=False)
    assert 'draws new crops' in crops.phases[0]['why']


def test_features_are_not_kept_where_that_saves_little(task):
    low = fit(head_on(task), task, Plan('low', [Phase(2, 'layer1', augment=False)], batch=8), progress=False).phases[0]
    assert not low['once'] and low['why'].startswith('nothing computed once: features kept below') and '1.0 times less' in low['why']
    assert fit(head_on(task), task, Plan('low', [Phase(2, 'layer1', augment=False)], batch=8, cache=True), progress=False).phases[0]['once']


def test_a_cache_shared_by_two_fits_gives_the_same_bits(task, tmp_path):
    def go(cache): m = head_on(task); fit(m, task, feature_extraction(2, batch=8), progress=False, cache=cache); return state(m)
    for cache in (FeatureCache(), FeatureCache(tmp_path)):
        alone, first, second = go(None), go(cache), go(cache)
        assert same(alone, first) and same(alone, second) and (cache.misses, cache.hits) == (2, 2)


def test_augmented_features_are_never_cached(model, task):
    before = state(model)
    with pytest.raises(ValueError, match="cache=True, but its phase from 'layer4' augments"):
        fit(model, task, Plan('both', [Phase(1, -1, augment=False), Phase(1, 'layer4')], cache=True), progress=False)
    assert same(before, state(model)), 'refused only after training had begun'
    assert fit(model, task, feature_extraction(1, cache=True), progress=False).phases[0]['once']


# Early stopping

class Forbidden:
    "A split that nobody may look at."
    def __getattr__(self, name): raise AssertionError(f'the test split was touched: {name}')
    def __len__(self): raise AssertionError('the test split was touched: len')


@pytest.fixture
def hard(task):
    "Labels of the validation split turned round: the more is learned, the higher its loss. Nobody may touch the test split."
    return Task('hard', 'pictures', task.classes, task.train, Split('valid', task.valid.inputs, 1 - task.valid.labels, task.valid.ids), Forbidden())


def valid_loss(model, task):
    logits = run(model, run(model, task.valid.inputs, stop='head'), start='head')
    return F.cross_entropy(logits, torch.as_tensor(task.valid.labels)).item()


def test_patience_stops_each_phase_and_restores_the_best_without_the_test_split(hard):
    m = head_on(hard); plan = Plan('patient', [Phase(30, -1, 1e-2, augment=False), Phase(9, -1, 1e-2, augment=False)], batch=8, patience=2)
    h = fit(m, hard, plan, progress=False); best = h.table.valid_loss.min()
    assert [p['epochs'] for p in h.phases] == [h.kept + 2, 2] and len(h.rows) == h.kept + 4 < 39
    assert h.rows[h.kept - 1]['valid_loss'] == best == valid_loss(m, hard)
    assert f'phase 1 of 2 ended after {h.kept + 2} of 30 epochs' in h.stopped and 'phase 2 of 2 ended after 2 of 9' in h.stopped
    assert h.stopped in repr(h) and h.plot()


def test_without_patience_all_epochs_are_trained_and_the_last_weights_kept(hard):
    m = head_on(hard); h = fit(m, hard, feature_extraction(6, batch=8), progress=False)
    assert len(h.rows) == h.kept == 6 and not h.stopped and h.rows[-1]['valid_loss'] == valid_loss(m, hard) > h.table.valid_loss.min()


def test_planted_stopping_on_the_test_split_is_caught(hard, monkeypatch):
    real = training._phase
    class Cheat:
        def __init__(self, task): self.train, self.valid, self.classes = task.train, task.test, task.classes
    monkeypatch.setattr(training, '_phase', lambda state, task, device, bar, *more: real(state, Cheat(task), device, bar, *more))
    with pytest.raises(AssertionError, match='the test split was touched'): fit(head_on(hard), hard, feature_extraction(2, patience=1), progress=False)


# The optimizer is built after freezing

def holds_what_trains(model, opt): return {id(p) for g in opt.param_groups for p in g['params']} == {id(p) for p in model.parameters() if p.requires_grad}


def watch_optimizers(monkeypatch):
    "Record, at every step, whether the optimizer holds what trains and nothing else."
    seen, real = [], training._step
    def step(model, x, y, opt, *rest): seen.append(holds_what_trains(model, opt)); return real(model, x, y, opt, *rest)
    monkeypatch.setattr(training, '_step', step)
    return seen


def test_each_phase_builds_its_optimizer_after_freezing(task, monkeypatch):
    seen = watch_optimizers(monkeypatch)
    fit(head_on(task), task, gradual_unfreezing(1, 3, last=1, batch=8), progress=False)
    assert len(seen) == 8 and all(seen)


def test_planted_optimizer_built_before_thawing_is_caught(task, monkeypatch):
    seen, real, early = watch_optimizers(monkeypatch), training._prepare, []
    def prepare(model, task, plan, phase, device, *more):
        if not early: freeze_until(model, 'head'); early.append(training.torch.optim.AdamW(learning_rates(model, 1e-3), lr=1e-3))
        for g in early[0].param_groups: g['peak'] = 1e-3
        return *real(model, task, plan, phase, device, *more)[:3], early[0]
    monkeypatch.setattr(training, '_prepare', prepare)
    fit(head_on(task), task, fine_tuning(1, head_epochs=1, batch=8), progress=False)
    assert seen == [True, True, False, False]


# What is kept when something goes wrong

def test_interrupt_gives_back_the_best_epoch(hard, monkeypatch):
    m, real, calls = head_on(hard), training._step, []
    def step(*a):
        calls.append(1)
        if len(calls) == 13: raise KeyboardInterrupt
        return real(*a)
    monkeypatch.setattr(training, '_step', step)
    h = fit(m, hard, Plan('p', [Phase(20, -1, 1e-2, augment=False)], batch=8), progress=False)
    assert len(h.rows) == 6 and 1 <= h.kept < 6 and h.rows[h.kept - 1]['valid_loss'] == h.table.valid_loss.min() == valid_loss(m, hard)
    assert h.stopped == 'interrupted at the keyboard' and h.seconds > 0


@pytest.mark.parametrize('what', ['loss', 'gradient'])
def test_a_bad_step_leaves_weights_and_statistics_as_they_were(task, monkeypatch, what):
    m, real, before = head_on(task), training._step, []
    def step(model, x, *rest):
        before.append(state(model))
        if len(before) == 3 and what == 'loss': x = x * float('nan')
        if len(before) == 3 and what == 'gradient': model.stages['head'].linear.weight.register_hook(lambda g: g * float('inf'))
        return real(model, x, *rest)
    monkeypatch.setattr(training, '_step', step)
    with pytest.raises(TrainingError, match=f'The {what} is .*lower its learning rate'): fit(m, task, from_scratch(3, batch=8), progress=False)
    assert len(before) == 3 and same(before[2], state(m)) and not same(before[1], state(m)) and not m.training


@pytest.mark.parametrize('error', [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
                                   torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB.')], ids=lambda e: type(e).__name__)
def test_out_of_memory_comes_with_advice(model, task, monkeypatch, error):
    def step(*a): raise error
    monkeypatch.setattr(training, '_step', step)
    def go(**options): fit(model, task, from_scratch(1, **options), progress=False)
    with pytest.raises(TrainingError, match='batch from 32 to 16, take smaller pictures, or put the cut higher'): go()
    with pytest.raises(TrainingError, match="'from scratch': take smaller"): go(batch=1)
    error.args = ('something else',); expected = TrainingError if isinstance(error, MemoryError) else RuntimeError
    with pytest.raises(expected): go()


# Dropout, averages, records

def test_dropout_of_a_plan_drops_and_goes_again(task):
    m, shares = head_on(task), []
    linear, keys = m.stages['head'].linear, list(m.state_dict())
    hook = linear.register_forward_pre_hook(lambda _, x: shares.append((m.training, (x[0] != 0).float().mean().item())))
    fit(m, task, feature_extraction(3, batch=8, dropout=.5), progress=False)
    trained, whole = ([s for mode, s in shares if mode == which] for which in (True, False))
    assert len(trained) == 6 and len(whole) == 4 and abs(np.mean(trained) / np.mean(whole[1:]) - .5) < .05, 'half of the features that are not zero'
    assert m.stages['head'].dropout.p == 0 and list(m.state_dict()) == keys
    hook.remove()
    m.stages['head'].dropout = nn.Identity()            # a head that has no dropout of its own
    with training._dropout(m, .5):
        m.train(); m(torch.randn(4, 3, 48, 48)); hooks = len(linear._forward_pre_hooks)
        x = torch.randn(2, 512); assert not torch.equal(linear(x), linear(x)) and torch.equal(linear.eval()(x), linear(x))
    assert hooks == 1 and not linear._forward_pre_hooks


def test_average_is_that_of_the_last_phase(task, monkeypatch):
    m, real, path = head_on(task), training._step, []
    def step(model, *rest):
        loss = real(model, *rest); path.append({k: v.clone() for k, v in model.named_parameters()}); return loss
    monkeypatch.setattr(training, '_step', step)
    h = fit(m, task, Plan('p', [Phase(2, -1, 1e-2, augment=False), Phase(4, 'layer4', 1e-3, augment=False)], batch=8, average=.3), progress=False)
    want = dict(path[3])                                # the weights at the end of the first phase
    for t, weights in enumerate(path[4:]):
        decay = min(.3, (1 + t) / (10 + t)); want = {k: decay * v + (1 - decay) * weights[k] for k, v in want.items()}
    assert len(path) == 12 and all(torch.allclose(want[k], v, atol=1e-6) for k, v in m.named_parameters())
    assert not torch.equal(path[-1]['stages.head.linear.weight'], m.stages['head'].linear.weight)
    features = run(m, task.valid.inputs, stop='layer4')
    assert F.cross_entropy(run(m, features, start='layer4'), torch.as_tensor(task.valid.labels)).item() == h.rows[-1]['valid_loss']


def test_history_keeps_rates_by_stage_and_goes_through_a_file(task, tmp_path):
    h = fit(head_on(task), task, Plan('a <b> $c', [Phase(1, -1, 1e-2, augment=False), Phase(2, 'layer3', 1e-3, .5)], batch=8), progress=False)
    assert list(h.rates) == ['head', 'layer3', 'layer4'] and h.rates.loc[1].notna().tolist() == [True, False, False]
    peak = schedule(0, 4); assert h.rates.loc[2].tolist() == [1e-3 * peak, 2.5e-4 * peak, 5e-4 * peak] and h.table.lr[1] == 1e-3 * peak
    assert [p['cut'] for p in h.phases] == ['head', 'layer3'] and 0 < sum(p['prepare'] + p['seconds'] for p in h.phases) < h.seconds
    assert History.load(h.save(tmp_path/'h.json')) == h and [f.name for f in tmp_path.iterdir()] == ['h.json'] and h.plot()
    (tmp_path/'h.json').write_text('{"plan": 3}')
    for bad in ('h.json', 'none.json'):
        with pytest.raises(ValueError, match='holds no history'): History.load(tmp_path/bad)
    h.stopped = '<script>'; assert '<script>' not in h._repr_html_() and len(repr(h)) < 200


# The range test

def test_range_test_leaves_the_model_alone(hard):
    m = freeze_until(head_on(hard, dropout=.1), 'layer3').train(); hard.valid = Forbidden()
    before, modes, grads = state(m), [x.training for x in m.modules()], [p.requires_grad for p in m.parameters()]
    torch.manual_seed(5); want = torch.rand(1); torch.manual_seed(5)
    r = learning_rate_range(m, hard, feature_extraction(batch=8), low=1e-4, high=1e-1, steps=20)
    assert torch.equal(torch.rand(1), want) and same(before, state(m)) and not hasattr(m.stages['head'].linear.weight.grad, 'shape')
    assert modes == [x.training for x in m.modules()] and grads == [p.requires_grad for p in m.parameters()] and m.stages['head'].dropout.p == .1
    assert len(r.rates) == 20 and abs(r.rates[0] - 1e-4) < 1e-12 and abs(r.rates[-1] - .1) < 1e-9 and r.rates[-1] / 10 >= r.suggestion >= r.rates[0] / 10
    assert r.suggestion == r.rates[int(np.argmin(r.smooth))] / 10 and 'try a rate' in repr(r) and r.plot()


def test_range_test_stops_where_it_explodes(task):
    r = learning_rate_range(head_on(task), task, from_scratch(1, batch=8), low=1e-4, high=1e4, steps=60)
    assert 10 < len(r.rates) < 60 and r.suggestion < 1
    for wrong in (dict(low=0), dict(low=1, high=.1), dict(steps=5)):
        with pytest.raises(ValueError, match='0 < low < high'): learning_rate_range(head_on(task), task, from_scratch(1), **wrong)


def test_range_test_starts_where_fit_does(task):
    "A plan from scratch is tried from random weights: what the model had before makes no difference."
    a, b = head_on(task), head_on(task)
    with torch.no_grad(): b.stages['layer4'][0].conv1.weight.mul_(3)
    x, y = (learning_rate_range(m, task, from_scratch(1, batch=8), steps=12).losses for m in (a, b))
    assert x == y
    x, y = (learning_rate_range(m, task, feature_extraction(batch=8), low=1e-4, high=1e-2, steps=12).losses for m in (a, b))
    assert x != y


def test_a_head_for_other_classes_is_refused(task):
    "Before an hour of training, not after it, and never in silence: other names, another order, too many."
    for classes in (['light', 'dark'], ['dark', 'light', 'gray'], ['cat', 'dog']):
        m = attach_head(load_backbone('pocket-resnet', pretrained=False, verbose=False), classes); before = state(m)
        for call in (lambda m=m: fit(m, task, feature_extraction(1), progress=False), lambda m=m: learning_rate_range(m, task, feature_extraction(1))):
            with pytest.raises(ValueError, match='make the head for this task'): call()
        assert moved(before, state(m)) == set()


@pytest.mark.parametrize('plan', [Plan('p', [Phase(2, -1, lr=-1e-3)]), Plan('p', [Phase(2, -1, lr=0)]), fine_tuning(1, lr=0.),
    Plan('p', [Phase(0)]), Plan('p', [Phase(1.5)]), Plan('p', [Phase(1), Phase(1, -1, decay=0)]),
    Plan('p', [Phase(1)], smoothing=2), Plan('p', [Phase(1)], batch=0), Plan('p', [Phase(1)], weight_decay=-1),
    Plan('p', [Phase(1, -1, math.nan)]), Plan('p', [Phase(1)], crop=0), Plan('p', [Phase(1)], clip=0), from_scratch(1, lr=0)], ids=repr)
def test_numbers_that_can_not_be_meant_are_refused_before_training(task, model, plan):
    before = state(model)
    with pytest.raises(ValueError, match='can not be meant'): fit(model, task, plan, progress=False)
    assert moved(before, state(model)) == set()


def test_an_interrupt_before_the_first_epoch_leaves_a_history_that_draws(task, model):
    h = History(feature_extraction(2)); assert list(h.table.columns)[:2] == ['epoch', 'phase'] and h.plot().axes and h._repr_html_() and len(h.rates) == 0


def test_validation_features_that_would_not_fit_are_not_kept(task, model):
    freeze_until(model, 'layer1'); times = 1 + 501 // len(task.valid)
    many = Split('valid', np.tile(task.valid.inputs, (times, 1, 1, 1)), np.tile(task.valid.labels, times), list(range(len(task.valid) * times)))
    cut, kept = training._examined(model, many, 'layer1', None); assert cut == 'layer1' and torch.is_tensor(kept) and len(kept) == len(many)
    start, raw = training._examined(model, many, 'layer1', None, limit=kept.nbytes - 1); assert start is None and raw is many.inputs
    assert torch.allclose(training.run(model, raw, start=start), training.run(model, kept, start=cut), atol=1e-2)


# Killed, and resumed to the same bits

STATES = dict(batch=8, schedule='one-cycle', dropout=.3, mixup=.3, average=.9, patience=2)   # everything that has a state
RICH = Plan('rich', [Phase(2, -1, 1e-2, augment=False), Phase(3, -1, 1e-2)], **STATES)       # small files: the head alone


class Killed(BaseException): "As sudden as can be had within one process."


def kill_at(monkeypatch, where, n):
    "Let the n-th call of `where` (a module and a name) be the last thing that happens."
    real, calls = getattr(*where), []
    def call(*a, **k):
        calls.append(1)
        if len(calls) == n: raise Killed
        return real(*a, **k)
    monkeypatch.setattr(*where, call)


@pytest.fixture(scope='module')
def undisturbed(task):
    m = head_on(task); h = fit(m, task, RICH, seed=3, progress=False)
    return state(m), h


def resumed(task, path, seed=3, plan=RICH): m = head_on(task); return m, fit(m, task, plan, seed, progress=False, checkpoint=path)


def is_same(pair, undisturbed):
    model, h = pair; want, g = undisturbed
    return same(want, state(model)) and h.table.drop(columns='seconds').equals(g.table.drop(columns='seconds')) and (h.kept, h.stopped) == (g.kept, g.stopped)


def kill(task, path, monkeypatch, where=(training, '_step'), n=7):
    with monkeypatch.context() as patch:
        kill_at(patch, where, n)
        with pytest.raises(Killed): resumed(task, path)


STEP, REPLACE, FSYNC = (training, '_step'), (os, 'replace'), (os, 'fsync')

@pytest.mark.parametrize('where, n', [(STEP, 1), (STEP, 4), (STEP, 5), (STEP, 8), (STEP, 10),
                                      (REPLACE, 1), (REPLACE, 2), (REPLACE, 3), (FSYNC, 3), (REPLACE, 9)])
def test_a_killed_fit_goes_on_to_the_same_bits(task, tmp_path, monkeypatch, undisturbed, where, n):
    path = tmp_path/'deep'/'run.safetensors'
    kill(task, path, monkeypatch, where, n)
    assert is_same(resumed(task, path), undisturbed) and not list(path.parent.iterdir())


def test_stages_of_the_backbone_go_on_to_the_same_bits(task, tmp_path, monkeypatch):
    plan = Plan('deep', [Phase(2, 'layer4', 1e-3, augment=False), Phase(2, None, 1e-3, .7, sizes=(24, 48))], pretrained=False, **STATES)
    m = head_on(task); h = fit(m, task, plan, 3, progress=False)
    with monkeypatch.context() as patch:
        kill_at(patch, STEP, 6)
        with pytest.raises(Killed): resumed(task, tmp_path/'run', plan=plan)
    assert is_same(resumed(task, tmp_path/'run', plan=plan), (state(m), h))


def test_parts_of_a_killed_checkpoint_go_at_the_end(task, tmp_path, undisturbed):
    part = tmp_path/'run.safetensors.part'; mine = tmp_path/f'.run.safetensors.{"0a" * 4}.part'; part.touch(); mine.touch()   # the first is not ours
    assert is_same(resumed(task, tmp_path/'run.safetensors'), undisturbed) and list(tmp_path.iterdir()) == [part]


def test_killed_again_and_again(task, tmp_path, monkeypatch, undisturbed):
    for n in (3, 3, 4, 1): kill(task, tmp_path/'run', monkeypatch, n=n)
    assert is_same(resumed(task, tmp_path/'run'), undisturbed)


def test_a_resumed_fit_does_not_begin_anew(task, tmp_path, monkeypatch, undisturbed):
    kill(task, tmp_path/'run', monkeypatch)             # in the fourth epoch
    steps, real = [], training._step
    monkeypatch.setattr(training, '_step', lambda *a: steps.append(1) or real(*a))
    _, h = resumed(task, tmp_path/'run')
    assert len(steps) == 2 * (len(h.rows) - 3)


@pytest.mark.parametrize('forgotten', ['order', 'dropout', 'moments', 'average', 'best'])
def test_planted_what_a_checkpoint_forgets_is_caught(task, tmp_path, monkeypatch, undisturbed, forgotten):
    kill(task, tmp_path/'run', monkeypatch, n=8)
    real = training._Checkpoint.resume
    def resume(self, state):
        generator, cpu = state.generator.get_state(), torch.get_rng_state()
        real(self, state)
        if forgotten == 'order': state.generator.set_state(generator)
        if forgotten == 'dropout': torch.set_rng_state(cpu)
        if forgotten == 'moments': state.moments = {}
        if forgotten == 'average': state.average = {}
        if forgotten == 'best': state.lowest, state.best = -1., {}
    monkeypatch.setattr(training._Checkpoint, 'resume', resume)
    assert not is_same(resumed(task, tmp_path/'run'), undisturbed)


def test_a_checkpoint_of_another_fit_is_refused(task, tmp_path, monkeypatch, undisturbed):
    path = tmp_path/'run'; kill(task, path, monkeypatch)
    def refused(word, model=None, task=task, seed=3, plan=RICH):
        with pytest.raises(TrainingError, match=f'made with another {word}: give what it was made with'):
            fit(model or head_on(task), task, plan, seed, progress=False, checkpoint=path)
    other = copy.deepcopy(RICH); other.phases[1].lr = 2e-3
    labels = task.valid.labels.copy(); labels[0] = 1 - labels[0]
    refused('plan', plan=other); refused('seed', seed=4); refused('model', model=head_on(task, seed=1)); refused('plan and another seed', plan=other, seed=1)
    refused('data', task=Task('t', 'pictures', task.classes, task.train, Split('valid', task.valid.inputs, labels, task.valid.ids), task.test))
    dropping = head_on(task); dropping.stages['head'].dropout.p = .5; refused('model', model=dropping)          # no tensor tells
    prepared = head_on(task); prepared.preprocess = type(prepared.preprocess)(mean=(.5, .5, .5)); refused('model', model=prepared)
    pictures = task.train.inputs.copy(); pictures[3, 5, 5, 0] ^= 1
    refused('data', task=Task('t', 'pictures', task.classes, Split('train', pictures, task.train.labels, task.train.ids), task.valid, task.test))
    assert is_same(resumed(task, path), undisturbed)
    with pytest.raises(TrainingError, match='is a folder'): resumed(task, tmp_path)


DAMAGES = dict(cut=lambda b: b[:len(b) // 2], flipped=lambda b: b[:-1000] + bytes([b[-1000] ^ 1]) + b[-999:], empty=lambda b: b'', text=lambda b: b'mine' * 99)

@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(task, tmp_path, monkeypatch, undisturbed, damage):
    path = tmp_path/'run'; kill(task, path, monkeypatch); path.write_bytes(DAMAGES[damage](path.read_bytes()))
    steps, real = [], training._step
    monkeypatch.setattr(training, '_step', lambda *a: steps.append(1) or real(*a))
    with pytest.warns(UserWarning, match='damaged or none of ours'): pair = resumed(task, path)
    assert is_same(pair, undisturbed) and len(steps) == 2 * (len(pair[1].rows) - 2)
    assert [f.name for f in tmp_path.iterdir()] == ['run.damaged']


def test_two_damaged_checkpoints_mean_a_new_start(task, tmp_path, monkeypatch, undisturbed):
    path = tmp_path/'run'; kill(task, path, monkeypatch)
    for p in (path, tmp_path/'run.previous'): p.write_bytes(b'x' + p.read_bytes())
    with pytest.warns(UserWarning, match='starts anew'): pair = resumed(task, path)
    assert is_same(pair, undisturbed)


def test_a_file_of_weights_is_not_overwritten(task, tmp_path):
    path = tmp_path/'mine.safetensors'; save_file(dict(w=torch.ones(2)), path); mine = path.read_bytes()
    with pytest.warns(UserWarning, match='none of ours'): resumed(task, path, plan=feature_extraction(1))
    assert (tmp_path/'mine.safetensors.damaged').read_bytes() == mine


def test_a_full_disk_does_not_end_the_training(task, tmp_path, monkeypatch, undisturbed):
    def full(*a, **k): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(training, 'save_file', full)
    with pytest.warns(UserWarning, match='No space left'): pair = resumed(task, tmp_path/'run')
    assert is_same(pair, undisturbed)


def test_an_interrupted_fit_can_be_resumed(task, tmp_path, monkeypatch, undisturbed):
    real, calls = training._step, []
    def step(*a):
        calls.append(1)
        if len(calls) == 7: raise KeyboardInterrupt
        return real(*a)
    with monkeypatch.context() as patch:
        patch.setattr(training, '_step', step)
        _, h = resumed(task, tmp_path/'run')
    assert len(h.rows) == 3 and h.stopped and is_same(resumed(task, tmp_path/'run'), undisturbed)


@pytest.mark.skipif(os.name != 'posix', reason='SIGKILL and fork')
def test_sigkill_at_random_moments(tmp_path):
    command = [sys.executable, str(ROOT/'benchmarks'/'kill_resume.py'), '--quick', '--kills', '4', '--out', str(tmp_path/'out.json')]
    env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    end = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert end.returncode == 0, end.stdout + end.stderr
    record = json.loads((tmp_path/'out.json').read_text())
    assert record['kills'] == record['identical'] == len(record['rows']) == 4


def test_what_is_no_plan_or_has_no_head_is_one_sentence(model, task):
    with pytest.raises(TypeError, match=r'plan is <function fine_tuning.*with its brackets'): fit(model, task, fine_tuning, progress=False)
    with pytest.raises(TypeError, match='A Backbone has no head to train.*attach_head'):
        fit(load_backbone('pocket-resnet', verbose=False), task, fine_tuning(1), progress=False)


def test_a_watcher_changes_no_bit_and_hears_of_every_epoch(task):
    def fresh(): return attach_head(load_backbone('pocket-resnet', pretrained=False), task, dropout=.2)
    plan, told, seen = Plan('p', [Phase(2, -1, 1e-2), Phase(2, 'layer4', 1e-2)], batch=8, mixup=.2, average=.9), [], []
    quiet, loud = fresh(), fresh(); fit(quiet, task, plan, progress=False)
    def nosy(facts): told.append((facts['epoch'], facts['epochs'], facts['done'])); torch.rand(7); torch.manual_seed(5)
    def look(facts): seen.append({k: v.clone() for k, v in facts['model'].state_dict().items()})
    history = fit(loud, task, plan, progress=False, watch=[nosy, look])
    assert all(torch.equal(v, loud.state_dict()[k]) for k, v in quiet.state_dict().items())
    assert told == [(i, 4, False) for i in range(5)] + [(4, 4, True)] and len(history.rows) == 4
    assert all(torch.equal(v, seen[-1][k]) for k, v in quiet.state_dict().items())                # the end: averaged weights
    assert any(not torch.equal(seen[-1][k], seen[-2][k]) for k in seen[-1])                       # after the last epoch: not yet


def test_a_watcher_may_end_the_training_and_must_be_callable(model, task):
    told = []
    def enough(facts):
        told.append(facts['done'])
        if facts['epoch'] == 2 and not facts['done']: raise KeyboardInterrupt
    history = fit(model, task, Plan('p', [Phase(5, -1, 1e-2)], batch=8), progress=False, watch=enough)
    assert len(history.rows) == 2 and 'keyboard' in history.stopped and told == [False, False, False, True]
    with pytest.raises(TypeError, match='watch is 3'): fit(model, task, Plan('p', [Phase(1)]), progress=False, watch=3)


def test_numbers_of_numpy_are_numbers(task, tmp_path):
    plan = Plan('p', [Phase(np.int64(2), lr=np.float32(1e-3))], batch=8.); model = head_on(task); history = fit(model, task, plan, progress=False)
    assert len(history.rows) == 2 and History.load(history.save(tmp_path/'h.json')).plan.batch == 8 and type(plan.phases[0].lr) is float
    for odd in (dict(clip=None), dict(crop='x'), dict(warmup=None)):
        with pytest.raises(ValueError, match='can not be meant'): fit(model, task, Plan('p', [Phase(1)], **odd), progress=False)
    with pytest.raises(ValueError, match='phase is 3'): learning_rate_range(model, task, plan, phase=3)


def test_one_epoch_keeps_nothing_beyond_the_limit(task, monkeypatch):
    import transfer_course.training as t
    plan = Plan('p', [Phase(1, -1, augment=False)]); model = head_on(task); assert t._once(model, plan, plan.phases[0], task.train.inputs)[0]
    monkeypatch.setattr(t, 'caching_pays', lambda *a: (False, 'Features kept below it would take 9 MB, more than the limit of 1 MB.'))
    assert not t._once(model, plan, plan.phases[0], task.train.inputs)[0]


def test_a_watcher_that_fails_at_the_end_leaves_the_checkpoint(task, tmp_path):
    def fail(facts):
        if facts.get('done'): raise RuntimeError('the disk of the watcher is full')
    path = tmp_path/'c'
    with pytest.raises(RuntimeError, match='watcher'): fit(head_on(task), task, Plan('p', [Phase(2)]), progress=False, checkpoint=path, watch=fail)
    assert path.exists() and len(fit(head_on(task), task, Plan('p', [Phase(2)]), progress=False, checkpoint=path).rows) == 2 and not path.exists()
