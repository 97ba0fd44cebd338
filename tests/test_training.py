"Freezing, training and evaluation keep their promises on small tasks."
import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from transfer_course.backbones import attach_head, load_backbone
from transfer_course.evaluation import Report, evaluate, mean_interval, wilson
from transfer_course.freezing import cut_of, freeze_until, is_frozen, learning_rates, stages_of, thaw
from transfer_course.tasks import Split, Task
from transfer_course.training import Phase, Plan, TrainingError, augment, feature_extraction, fine_tuning, fit, from_scratch, gradual_unfreezing, run


@pytest.fixture(scope='module')
def task():
    "Sixteen training pictures: dark ones and light ones."
    rng = np.random.default_rng(0)
    def part(name, n):
        labels = np.arange(n) % 2
        pictures = rng.integers(0, 120, (n, 48, 48, 3), dtype=np.uint8) + (labels * 100).astype(np.uint8)[:, None, None, None]
        return Split(name, pictures, labels, [f'{name}{i}' for i in range(n)])
    return Task('dark and light', 'pictures', ['dark', 'light'], part('train', 16), part('valid', 8), part('test', 8))


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
    import transfer_course.training as training
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
