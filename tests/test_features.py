"Features are computed once at any cut, are the same as if computed anew, and a cache never gives back old or damaged ones."
import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from safetensors.torch import load_file, save_file
from torch import nn

from transfer_course import features as lesson
from transfer_course.backbones import PictureInput, StagedModel, attach_head, load_backbone
from transfer_course.backstage import feature_files
from transfer_course.features import TOLERANCE, FeatureCache, caching_pays, cost_of_cut, extract_features, feature_key, run, take
from transfer_course.freezing import freeze_until
from transfer_course.tasks import Split

CUTS = ['layer1', 'layer2', 'layer3', 'layer4', 'head']

# How far logits and the gradient above the cut may be from those of uncached features, as shares of their norms: above the head's cut, above other
# cuts with BatchNorm's statistics kept, and with those of a batch (here 12 tiny pictures). A rounded number that crosses zero switches a ReLU, so
# gradients move more than logits.
CLOSE = {torch.float32: dict(head=(1e-5, 1e-5), kept=(1e-5, 1e-5), batch=(1e-5, 1e-5)),
         torch.float16: dict(head=(1e-3, 1e-3), kept=(1e-3, 1e-2), batch=(5e-3, 1.5e-1)),
         torch.bfloat16: dict(head=(5e-3, 5e-3), kept=(5e-3, 5e-2), batch=(3e-2, 2.5e-1))}


@pytest.fixture(scope='module')
def backbone(): return load_backbone('pocket-resnet', verbose=False)


@pytest.fixture
def model(backbone): return freeze_until(attach_head(backbone, ['cat', 'dog'], dropout=.2), 'head')


@pytest.fixture(scope='module')
def pictures(): return np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)


def shake(x, generator, most=4):
    "Move each picture sideways at random."
    return torch.stack([t.roll(int(torch.randint(1, most, (), generator=generator)), 2) for t in x])


class States(nn.Module):
    "A text stage: changes states, and hands the mask on."
    def __init__(self, words=None):
        super().__init__()
        self.words, self.linear = None if words is None else nn.Embedding(words, 8), nn.Linear(8, 8)

    def forward(self, x):
        states = x['states'] if self.words is None else self.words(x['tokens'])
        return dict(states=torch.tanh(self.linear(states)), mask=x['mask'])


class MeanHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 2)

    def forward(self, x):
        mask = x['mask'][..., None]
        return self.linear((x['states'] * mask).sum(1) / mask.sum(1))


def tokens(texts):
    "Character codes, padded to the longest text of the batch."
    rows = [torch.tensor([ord(c) % 90 for c in t]) for t in texts]
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    return dict(tokens=pad(rows), mask=pad([torch.ones(len(r), dtype=torch.bool) for r in rows]))


@pytest.fixture
def reader():
    "A small text model whose stages hand on a dict."
    torch.manual_seed(0)
    stages = dict(embeddings=States(90), layer0=States(), head=MeanHead())
    return freeze_until(StagedModel(stages, ['bad', 'good'], 'reader', tokens, None), 'head')


TEXTS = ['good', 'not good at all', 'well', 'a long and winding text, of many words', 'bad']


# ------------------------------------------------------------------ the same as computed

def above(model, x, y, start):
    "Logits, and the gradient above the cut as one vector, of a training step with dropout."
    model = copy.deepcopy(model).train(); torch.manual_seed(1)
    logits = model(x, start=start)
    F.cross_entropy(logits, y).backward()
    return logits.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('statistics', ['keep', 'adapt'])
@pytest.mark.parametrize('cut', CUTS)
def test_cached_equals_uncached(model, pictures, cut, statistics, dtype, tmp_path):
    freeze_until(model, cut, statistics)
    y = torch.arange(12) % 2
    with torch.no_grad(): below = model.train()(model.preprocess(pictures), stop=cut)
    want, tolerance = above(model, below, y, cut), CLOSE[dtype]['head' if cut == 'head' else 'kept' if statistics == 'keep' else 'batch']
    for folder in (None, tmp_path):
        kept = FeatureCache(folder, dtype).features(model, pictures, cut, exact=True)
        assert kept.dtype == dtype and kept.shape == below.shape and not kept.requires_grad
        for a, b, most in zip(want, above(model, take(kept, np.arange(12)), y, cut), tolerance):
            assert a.shape == b.shape and a.norm() > 0 and (a - b).norm() <= most * a.norm()


@pytest.mark.parametrize('cut', CUTS)
def test_fp32_is_the_same_to_the_bit_for_equal_batches(model, pictures, cut):
    want = run(model, pictures, exact=True)
    assert torch.equal(run(model, extract_features(model, pictures, cut, exact=True), start=cut, exact=True), want)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_rounding_stays_within_the_stated_bound(model, pictures, dtype):
    exact = extract_features(model, pictures, 'layer2', exact=True)
    error = (extract_features(model, pictures, 'layer2', dtype=dtype, exact=True).float() - exact).abs() / exact.abs().clamp(min=2**-14)
    assert TOLERANCE[dtype] / 2 < error.max() <= TOLERANCE[dtype]


def test_fp16_never_stores_infinity(model, pictures):
    with torch.no_grad(): model.stages['stem'].bn1.bias += 1e5
    with pytest.raises(ValueError, match='float16 ends at 65504; store them as torch.bfloat16'):
        extract_features(model, pictures, 'layer1', dtype=torch.float16)
    assert extract_features(model, pictures, 'layer1', dtype=torch.bfloat16).isfinite().all()


@pytest.mark.parametrize('batch', [1, 5, 12, 100])
def test_batches_do_not_matter(model, pictures, batch):
    whole = extract_features(model, pictures, 'head', exact=True)
    torch.testing.assert_close(extract_features(model, pictures, 'head', batch=batch, exact=True), whole, rtol=1e-4, atol=1e-5)


def test_from_features_to_features(model, pictures):
    low = extract_features(model, pictures, 'layer2', dtype=torch.float32, exact=True)
    assert torch.equal(extract_features(model, low, -1, start='layer2', exact=True), extract_features(model, pictures, 5, exact=True))
    assert torch.equal(extract_features(model, low, None, 2, exact=True), run(model, pictures, exact=True))


def test_all_ways_to_give_pictures(model, pictures):
    want = extract_features(model, pictures, 'layer1')
    split = Split('train', lambda: pictures, np.zeros(12), range(12))
    for given in (split, split.inputs, torch.as_tensor(pictures), list(pictures), Lazy(pictures)):
        assert torch.equal(extract_features(model, given, 'layer1'), want)
    prepared = model.preprocess(pictures)
    assert torch.equal(extract_features(model, prepared, 'layer1'), want) and torch.equal(run(model, prepared, start='stem'), run(model, pictures))
    assert torch.equal(run(model, pictures, stop='stem'), prepared)


class Lazy:
    "Pictures that are read when a slice is asked for, and never more than one batch of them."
    def __init__(self, pictures, most=256): self.pictures, self.most, self.asked = pictures, most, 0
    def __len__(self): return len(self.pictures)

    def __getitem__(self, rows):
        out = self.pictures[rows]
        assert len(out) <= self.most
        self.asked += len(out)
        return out


def test_inputs_are_read_lazily(model, pictures):
    source = Lazy(pictures, 5)
    extract_features(model, source, 'layer1', batch=5)
    assert source.asked == 12


class TooFew(Lazy):
    def __getitem__(self, rows): return self.pictures[rows][:3]


def test_missing_examples_are_noticed(model, pictures):
    with pytest.raises(ValueError, match='say that they are 12 examples and gave 8'): extract_features(model, TooFew(pictures), 'layer1', batch=5)


@pytest.mark.parametrize('folder', [False, True])
def test_texts_of_unlike_length(reader, folder, tmp_path):
    kept = extract_features(reader, TEXTS, 'layer0', batch=2, exact=True, out=tmp_path/'t.safetensors' if folder else None)
    assert kept['states'].shape == (5, max(map(len, TEXTS)), 8) and kept['mask'].sum(1).tolist() == list(map(len, TEXTS))
    torch.testing.assert_close(run(reader, kept, start='layer0', exact=True), run(reader, TEXTS, exact=True))
    some = take(kept, [3, 1])
    assert some['mask'].dtype == torch.bool and torch.equal(some['states'][1], kept['states'][1])
    whole = extract_features(reader, TEXTS, 'layer0', exact=True)
    assert all(torch.equal(kept[k][whole['mask']], whole[k][whole['mask']]) for k in whole)


def test_text_cache(reader, tmp_path):
    cache = FeatureCache(tmp_path, torch.float16)
    first, second = (cache.features(reader, TEXTS, 'head', batch=2) for _ in range(2))
    assert (cache.hits, cache.misses) == (1, 1) and first['states'].dtype == torch.float16 and all(torch.equal(first[k], second[k]) for k in first)
    cache.features(reader, TEXTS[::-1], 'head'); cache.features(reader, [''.join(TEXTS[:2]), *TEXTS[2:]], 'head')
    assert cache.misses == 3


# ------------------------------------------------------------------ modes, files, refusals

def modes(model): return [m.training for m in model.modules()]


def test_every_module_gets_its_mode_back(backbone, pictures):
    model = attach_head(backbone, ['a', 'b']).train()
    model.stages['layer3'].eval(); model.stages['layer1'][0].bn2.eval()
    before = modes(model)
    assert True in before and False in before[1:]
    state = copy.deepcopy(model.state_dict())
    extract_features(model, pictures, 'head')
    assert modes(model) == before and all(torch.equal(v, state[k]) for k, v in model.state_dict().items()) and torch.is_grad_enabled()
    with pytest.raises(ValueError): run(model, pictures.astype(float))
    assert modes(model) == before and torch.is_grad_enabled()


@pytest.mark.parametrize('dtype', TOLERANCE)
def test_file_and_memory_agree(model, pictures, dtype, tmp_path):
    path = tmp_path/'new'/'features.safetensors'
    kept = extract_features(model, pictures, 'layer2', batch=5, dtype=dtype, out=path)
    assert torch.equal(kept, extract_features(model, pictures, 'layer2', batch=5, dtype=dtype)) and kept.dtype == dtype
    assert kept.is_contiguous(memory_format=torch.channels_last) and kept[np.array([3, 1])].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(load_file(path)['features'].permute(0, 3, 1, 2), kept) and [p.name for p in path.parent.iterdir()] == [path.name]
    bytes_before = path.read_bytes()
    kept.zero_()
    assert path.read_bytes() == bytes_before, 'writing to the tensor must not write to the file'


def test_a_failure_leaves_no_file(model, pictures, tmp_path):
    with pytest.raises(ValueError): extract_features(model, TooFew(pictures), 'layer1', batch=5, out=tmp_path/'x.safetensors')
    assert not list(tmp_path.iterdir())


WRONG = [
    (dict(augment=shake), 'say how many to keep of each with views='), (dict(views=2), 'give the function'), (dict(views=0, augment=shake), 'whole number'),
    (dict(views=True, augment=shake), 'whole number'), (dict(stop='layer9'), 'no stage'), (dict(start='layer3'), 'takes the features'),
    (dict(start='layer4', stop='layer1'), 'lies below'), (dict(batch=0), 'batch is 0'), (dict(inputs=[]), 'no examples'),
    (dict(inputs=torch.zeros(2, 3, 32, 32), augment=shake, views=2), 'features already'),
]


@pytest.mark.parametrize('wrong, words', WRONG, ids=[str(list(w)) + words[:8] for w, words in WRONG])
@pytest.mark.parametrize('cached', [False, True])
def test_unclear_wishes_are_refused_in_one_sentence(model, pictures, wrong, words, cached):
    cache = FeatureCache()
    call = cache.features if cached else partial(extract_features)
    with pytest.raises(ValueError, match=words) as e: call(model, **dict(inputs=pictures) | wrong)
    assert str(e.value).endswith('.') and str(e.value).count('. ') == 0 and '\n' not in str(e.value) and cache.misses == 0


def test_dtype_must_be_known(model, pictures):
    for call in (lambda: extract_features(model, pictures, dtype=torch.float64), lambda: FeatureCache(dtype=torch.int8)):
        with pytest.raises(ValueError, match='torch.float16 or torch.bfloat16'): call()
    with pytest.raises(ValueError, match='limit is 0'): FeatureCache(limit=0)


def test_planted_bug_augmented_features_cached(model, pictures):
    "The well-known mistake: augmentation below a cache, the same crops in every epoch."
    with pytest.raises(ValueError, match='same in every epoch'): FeatureCache().features(model, pictures, 'head', augment=shake)
    FeatureCache().features(model, pictures, 'head')    # no correct use is accused
    FeatureCache().features(model, pictures, 'head', augment=shake, views=2)


def test_planted_bug_unfrozen_below_the_cut(model, backbone, pictures):
    cache = FeatureCache()
    with pytest.raises(ValueError, match="Stage 'stem' below the cut is not frozen"): cache.features(attach_head(backbone, ['a', 'b']), pictures)
    freeze_until(model, 'layer4')
    with pytest.raises(ValueError, match=r"Stage 'layer4' .* call freeze_until\(model, 'head'\) first"): cache.features(model, pictures, 'head')
    only_weights = attach_head(backbone, ['a', 'b']).requires_grad_(False)      # BatchNorm and dropout could go to training mode
    with pytest.raises(ValueError, match='not frozen'): cache.features(only_weights.eval(), pictures, 'head')
    cache.features(model, pictures, 'layer4')
    low = extract_features(model, pictures, 'layer2')
    freeze_until(model, 'layer3').stages['stem'].requires_grad_(True)
    cache.features(model, low, 'layer3', start='layer2')                        # the stem is not run
    assert cache.misses == 2


# ------------------------------------------------------------------ views

def test_views_are_stated_repeatable_and_different(model, pictures, tmp_path):
    get = partial(extract_features, model, pictures, 'layer2', augment=shake, exact=True)
    a, b, other = get(views=3, seed=1), get(views=3, seed=1, out=tmp_path/'v.safetensors'), get(views=3, seed=2)
    assert a.shape[:2] == (3, 12) and torch.equal(a, b) and not torch.equal(a, other) and not torch.equal(a[0], a[1])
    assert torch.equal(get(views=2, seed=1), a[:2]), 'more views must not change the first ones'
    assert take(a, [4, 2], view=1).equal(a[1][[4, 2]]) and take(a, [4, 2], view=1).is_contiguous(memory_format=torch.channels_last)
    x = shake(model.preprocess(pictures), torch.Generator().manual_seed((1 << 16) + 2))
    torch.testing.assert_close(a[2], run(model, x, stop='layer2', exact=True))


def test_views_in_the_cache(model, pictures, tmp_path):
    for folder in (None, tmp_path):
        cache = FeatureCache(folder)
        get = partial(cache.features, model, pictures, 'head')
        first = get(augment=shake, views=2)
        assert torch.equal(first, get(augment=shake, views=2)) and (cache.hits, cache.misses) == (1, 1)
        get()
        for change in (dict(views=3), dict(seed=1), dict(augment=partial(shake, most=3)), dict(batch=7)): get(**dict(augment=shake, views=2) | change)
        assert (cache.hits, cache.misses) == (1, 6)


def test_augmentation_that_cannot_be_repeated(model, pictures):
    with pytest.raises(ValueError, match='draw all its random numbers from the generator'):
        FeatureCache().features(model, pictures, augment=lambda x, generator: x + torch.rand(()), views=2)


# ------------------------------------------------------------------ the key

def key_of(model, pictures, **more): return feature_key(model, pictures, **dict(stop='layer4') | more)[0]
def weight(m): m.stages['layer2'][0].conv1.weight.data.view(-1)[7] += 1e-6
def running_mean(m): m.stages['stem'].bn1.running_mean[0] += 1e-6
def hidden_buffer(m): m.stages['layer1'].register_buffer('hidden', torch.zeros(1), persistent=False)
def structure(m): m.stages['layer3'][0].bn1.eps = 1e-3
def colours(m): m.preprocess = PictureInput(mean=(.5, .5, .5))


class Other:
    "A preprocessing with the settings of the first one that does something else."
    def __init__(self, first): self.__dict__.update(first.__dict__); self.__class__.__qualname__ = 'PictureInput'
    def __call__(self, x): return PictureInput()(x) * 2


def code(m): m.preprocess = Other(m.preprocess)


@pytest.mark.parametrize('change', [weight, running_mean, hidden_buffer, structure, colours, code])
def test_key_follows_the_model(model, pictures, change):
    before = key_of(model, pictures)
    change(model)
    assert key_of(model, pictures) != before


def test_key_follows_data_and_settings(model, pictures, monkeypatch):
    other, swapped = pictures.copy(), pictures[[1, 0, *range(2, 12)]]
    other[11, 31, 31, 2] ^= 1
    keys = [key_of(model, x) for x in (pictures, other, swapped, pictures[:11], torch.as_tensor(pictures), model.preprocess(pictures))]
    tall, spot = np.repeat(pictures, 2, 1), np.repeat(pictures, 2, 1); spot[11, 31, 15, 2] ^= 1          # printed, the two look the same
    keys += [key_of(model, list(x)) for x in (tall, spot)] + [key_of(model, [torch.as_tensor(p) for p in x]) for x in (tall, spot)]
    keys += [key_of(model, pictures, dtype=torch.float16), key_of(model, pictures, stop='layer3'), key_of(model, pictures, stop=None)]
    if lesson.fast_bf16('cpu'): keys.append(key_of(model, pictures, exact=True))
    monkeypatch.setattr(lesson, 'FORMAT', 2); keys.append(key_of(model, pictures)); monkeypatch.undo()
    for package in ('torch', 'torchvision', 'transformers'):
        monkeypatch.setattr(lesson, '_version', lambda p, package=package: '9' if p == package else '1'); keys.append(key_of(model, pictures))
    monkeypatch.undo()
    monkeypatch.setattr(lesson, '__version__', '9'); keys.append(key_of(model, pictures))
    assert len(set(keys)) == len(keys)


def test_bf16_is_no_emulation(monkeypatch):
    "An accelerator without the instructions is asked for fp32, though it could emulate bf16."
    from transfer_course.backstage.precision import fast_bf16
    for real in (True, False):
        monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation=True, real=real: real or including_emulation)
        assert fast_bf16('cuda') is real and fast_bf16('mps') is False


def test_key_ignores_what_does_not_matter(model, pictures):
    before = key_of(model, pictures)
    with torch.no_grad(): model.stages['head'].linear.weight += 1; model.stages['layer4'][0].conv1.weight += 1
    assert key_of(model, pictures.copy(), batch=3, seed=5) == before == key_of(model.train().to(memory_format=torch.channels_last), pictures)
    assert key_of(model, Lazy(pictures)) == before == key_of(thawed(model), pictures, stop=-2)


def thawed(model): return freeze_until(model, None)


def test_key_holds_in_another_process(model, pictures):
    code = f'''
        import numpy as np
        from transfer_course.backbones import attach_head, load_backbone
        from transfer_course.features import feature_key
        model = attach_head(load_backbone('pocket-resnet', verbose=False), ['cat', 'dog'])
        print(feature_key(model, np.random.default_rng(0).integers(0, 256, {pictures.shape}, dtype=np.uint8), 'layer4')[0])'''
    assert finished(start(code)) == key_of(model, pictures)


# ------------------------------------------------------------------ memory and disk

def test_found_again(model, pictures, tmp_path):
    for folder in (None, tmp_path):
        cache = FeatureCache(folder)
        a, b = (cache.features(model, pictures, 'head') for _ in range(2))
        assert torch.equal(a, b) and torch.equal(a, extract_features(model, pictures, 'head')) and (cache.hits, cache.misses) == (1, 1)
        assert '1 entry' in repr(cache) and '1 found and 1 computed' in repr(cache) and cache.size >= a.numel() * 4
        row = cache.table.iloc[0]
        assert (row['cut'], row['examples'], row['dtype']) == ('head', 12, 'float32') and len(cache.table) == 1
    later = FeatureCache(tmp_path)
    assert torch.equal(later.features(model, pictures, 'head'), a) and (later.hits, later.misses) == (1, 0)
    assert FeatureCache(tmp_path, torch.float16).features(model, pictures, 'head').dtype == torch.float16


def test_a_trained_head_keeps_the_features_valid(model, pictures):
    cache = FeatureCache(); first = cache.features(model, pictures, 'head')
    with torch.no_grad(): model.stages['head'].linear.weight += 1
    assert cache.features(model, pictures, 'head') is first


def test_what_somebody_wrote_to_is_not_trusted(model, pictures):
    cache = FeatureCache(); first = cache.features(model, pictures, 'head'); want = first.clone()
    first += 1
    assert torch.equal(cache.features(model, pictures, 'head'), want) and cache.misses == 2


def entry(folder): return next(folder.glob('*.safetensors'))


def flip(place):
    def damage(path, model, pictures):
        raw = bytearray(path.read_bytes()); raw[place % len(raw)] ^= 4; path.write_bytes(raw)
    damage.__name__ = f'bit_at_{place}'
    return damage


def cut_short(path, model, pictures): path.write_bytes(path.read_bytes()[:-1])
def half(path, model, pictures): path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
def header_alone(path, model, pictures): path.write_bytes(path.read_bytes()[:8 + int.from_bytes(path.read_bytes()[:8], 'little')])
def empty(path, model, pictures): path.write_bytes(b'')
def longer(path, model, pictures): path.write_bytes(path.read_bytes() + b'0')
def foreign(path, model, pictures): save_file(dict(features=torch.zeros(12, 1, 1, 512)), path)
def words(path, model, pictures): path.write_text('# Notes\n')
def endless_header(path, model, pictures): path.write_bytes((1 << 62).to_bytes(8, 'little') + b'{}')
def deep_header(path, model, pictures): path.write_bytes((1 << 19).to_bytes(8, 'little') + b'[' * (1 << 19))
def gone(path, model, pictures): path.unlink()


def other_entry(path, model, pictures):
    FeatureCache(path.parent).features(model, pictures[::-1].copy(), 'head')
    other = next(p for p in path.parent.glob('*.safetensors') if p != path)
    os.replace(other, path)


def zeros(path, model, pictures):
    size = int.from_bytes(path.read_bytes()[:8], 'little')
    path.write_bytes(path.read_bytes()[:8 + size] + bytes(path.stat().st_size - 8 - size))


class Bomb:
    def __reduce__(self): return os.mkdir, ('exploded',)


def pickled(path, model, pictures): path.write_bytes(pickle.dumps(Bomb()))


DAMAGE = [cut_short, half, header_alone, empty, longer, foreign, words, endless_header, deep_header, gone, other_entry, zeros, pickled,
          *map(flip, (0, 3, 9, 40, 200, 400, 1000, 4000, -1))]


@pytest.mark.parametrize('damage', DAMAGE, ids=lambda f: f.__name__)
def test_damaged_files_are_rebuilt(model, pictures, damage, tmp_path, monkeypatch):
    folder = tmp_path/'cache'; monkeypatch.chdir(tmp_path)
    cache = FeatureCache(folder)
    want = cache.features(model, pictures, 'head').clone()
    path = entry(folder)
    damage(path, model, pictures)
    assert torch.equal(cache.features(model, pictures, 'head'), want) and (cache.hits, cache.misses) == (0, 2)
    assert torch.equal(FeatureCache(folder).features(model, pictures, 'head'), want) and len(cache.table) == 1 and cache.size > 0
    assert cache.features(model, pictures, 'head').equal(want) and cache.hits == 1, 'the rebuilt file is good'
    assert not (tmp_path/'exploded').exists()


def test_every_single_bit_of_a_file_counts(tmp_path):
    path = tmp_path/'a.safetensors'
    file = feature_files.InFile(2, torch.float16, path, key='k'); file.put(torch.ones(2, 3)); file.close()
    raw = path.read_bytes()
    assert feature_files.load_features(path, 'k') is not None and len(raw) < 1000
    for i in range(len(raw)):
        for bit in range(8):
            path.write_bytes(raw[:i] + bytes([raw[i] ^ 1 << bit]) + raw[i + 1:])
            assert feature_files.load_features(path, 'k') is None, (i, bit)


def test_files_hold_no_code(model, pictures, tmp_path):
    FeatureCache(tmp_path).features(model, pictures, 'head')
    raw = entry(tmp_path).read_bytes(); size = int.from_bytes(raw[:8], 'little')
    assert json.loads(raw[8:8 + size])['__metadata__']['kind'] == 'transfer_course features'
    for name in ('features.py', 'backstage/feature_files.py'):
        text = (ROOT/'transfer_course'/name).read_text()
        assert 'pickle' not in text and 'torch.load' not in text and 'np.load' not in text


@pytest.mark.parametrize('on_disk', [False, True])
def test_longest_unused_goes_first(model, pictures, on_disk, tmp_path):
    one = FeatureCache(tmp_path/'one'); one.features(model, pictures, 'head')
    cache = FeatureCache(tmp_path/'many' if on_disk else None, limit=2.5 * one.size)
    def get(k):
        cache.features(model, np.roll(pictures, k, 0), 'head')
        time.sleep(.02)     # files tell their age in ticks of the clock
    get(0); get(1); get(0); get(2)      # 1 was used longest ago
    assert cache.size <= cache.limit and len(cache.table) == 2
    get(0); assert (cache.hits, cache.misses) == (2, 3)
    get(1); assert (cache.hits, cache.misses) == (2, 4)
    assert cache.size <= cache.limit and len(cache.table) == 2


@pytest.mark.parametrize('on_disk', [False, True])
def test_one_entry_above_the_limit(model, pictures, on_disk, tmp_path):
    small, large = pictures[:2], pictures
    size = extract_features(model, large, 'head').numel() * 4
    cache = FeatureCache(tmp_path if on_disk else None, limit=size - 1)
    cache.features(model, small, 'head')
    with pytest.warns(UserWarning, match=r'limit of the cache is .* not kept; raise limit=, or cut higher\.$'): got = cache.features(model, large, 'head')
    assert torch.equal(got, extract_features(model, large, 'head')) and len(cache.table) == 1 and not list(tmp_path.glob('.*'))
    cache.features(model, small, 'head')
    assert cache.hits == 1, 'what fits is not thrown out for what does not'


def test_clear_leaves_strangers_alone(model, pictures, tmp_path):
    strangers = [tmp_path/'notes.txt', tmp_path/'model.safetensors', tmp_path/('g' * 40 + '.safetensors')]
    for s in strangers: s.write_text('mine')
    cache = FeatureCache(tmp_path); cache.features(model, pictures[:4], 'head')
    left = tmp_path/f'.{"a" * 40}.safetensors.1.b.part'; left.write_text('x'); os.utime(left, (1, 1))
    cache.features(model, pictures[:5], 'head')
    assert not left.exists(), 'what a killed program left is swept away'
    cache.clear()
    assert sorted(tmp_path.iterdir()) == sorted(strangers) and cache.size == cache.hits == cache.misses == 0


def no_space(*args, **options): raise OSError(28, 'No space left on device')
def read_only(*args, **options): raise OSError(30, 'Read-only file system')


def failing(monkeypatch, how, folder):
    if how == 'full': monkeypatch.setattr(feature_files.os, 'fsync', no_space)
    if how == 'read-only': monkeypatch.setattr(feature_files.os, 'replace', read_only)
    if how == 'nearly full': monkeypatch.setattr(feature_files.shutil, 'disk_usage', lambda path: type('', (), dict(free=100)))
    if how == 'a file': folder.write_text('not a folder')


@pytest.mark.parametrize('how, words', [('full', 'No space left'), ('read-only', 'Read-only'), ('nearly full', r'0\.0 MB are free'),
                                        ('a file', 'Not a directory|File exists')])
def test_where_nothing_can_be_written_memory_serves(model, pictures, how, words, monkeypatch, tmp_path):
    folder = tmp_path/'cache'
    failing(monkeypatch, how, folder)
    cache = FeatureCache(folder)
    with pytest.warns(UserWarning, match=words) as said: got = cache.features(model, pictures, 'head')
    text = str(said[0].message)
    assert len(said) == 1 and text.endswith('this cache now keeps features in memory, until the program ends.') and '. ' not in text
    with warnings.catch_warnings():
        warnings.simplefilter('error')                          # said once
        assert cache.features(model, pictures, 'head') is got and cache.hits == 1
        cache.features(model, pictures[::-1].copy(), 'head')
    assert torch.equal(got, extract_features(model, pictures, 'head')) and len(cache.table) == 2
    assert folder.is_file() or not [p for p in folder.iterdir()]


def test_extracting_to_a_full_disk_is_one_sentence(model, pictures, monkeypatch, tmp_path):
    failing(monkeypatch, 'full', tmp_path)
    with pytest.raises(OSError, match='No space left on device; free some space or choose another place.$'):
        extract_features(model, pictures, 'head', out=tmp_path/'x.safetensors')
    assert not list(tmp_path.iterdir())


def test_a_read_only_folder_is_still_read(model, pictures, monkeypatch, tmp_path):
    FeatureCache(tmp_path).features(model, pictures, 'head')
    monkeypatch.setattr(feature_files.os, 'replace', read_only); monkeypatch.setattr(lesson.os, 'utime', read_only)
    cache = FeatureCache(tmp_path); cache.features(model, pictures, 'head')
    assert (cache.hits, cache.misses) == (1, 0)


# ------------------------------------------------------------------ several programs, and a killed one

SETUP = '''
import os, sys, time, warnings
import numpy as np
import torch
torch.set_num_threads(1)
from transfer_course.backbones import attach_head, load_backbone
from transfer_course.features import FeatureCache, extract_features
from transfer_course.freezing import freeze_until
model = freeze_until(attach_head(load_backbone('pocket-resnet', verbose=False), ['cat', 'dog']), 'head')
pictures = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
'''


def start(code, *words):
    "Run Python `code` in a process of its own."
    env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    command = [sys.executable, '-c', SETUP + textwrap.dedent(code), *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def finished(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.strip()


def test_three_programs_share_a_folder(tmp_path):
    code = '''
        want = [extract_features(model, np.roll(pictures, k, 0), 'head', progress=False) for k in range(4)]
        cache = FeatureCache(sys.argv[1], limit=250_000)         # room for two entries of four: they push each other out all the time
        warnings.simplefilter('error')
        while not os.path.exists(sys.argv[1] + '/go'): time.sleep(.01)
        for i in range(40):
            k = (i * int(sys.argv[2])) % 4
            assert torch.equal(cache.features(model, np.roll(pictures, k, 0), 'head'), want[k]), k
            if i % 9 == int(sys.argv[2]): cache.clear()
        print('good')'''
    tmp_path.joinpath('cache').mkdir()
    programs = [start(code, tmp_path/'cache', k) for k in (1, 2, 3)]
    tmp_path.joinpath('cache', 'go').touch()
    assert [finished(p) for p in programs] == ['good'] * 3
    assert not list(tmp_path.joinpath('cache').glob('.*')), 'no part of a file is left'


def test_killed_while_writing(model, pictures, tmp_path):
    code = '''
        class Slow:
            def __len__(self): return 12
            def __getitem__(self, rows):
                if any(p.name.endswith('.part') for p in os.scandir(sys.argv[1])): print('writing', flush=True); time.sleep(60)
                return pictures[rows]
        FeatureCache(sys.argv[1]).features(model, Slow(), 'layer1', batch=3)'''
    program = start(code, tmp_path)
    assert program.stdout.readline().strip() == 'writing'
    program.send_signal(signal.SIGKILL); program.wait()
    program.stdout.close(); program.stderr.close()
    assert [p.suffix for p in tmp_path.iterdir()] == ['.part']
    cache = FeatureCache(tmp_path)
    assert torch.equal(cache.features(model, pictures, 'layer1', batch=3), extract_features(model, pictures, 'layer1', batch=3)) and cache.misses == 1


@pytest.mark.skipif(os.name != 'posix', reason='limits of a process are set in the POSIX way')
def test_a_disk_that_fills_up_while_writing(tmp_path):
    code = '''
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))    # any file ends here, as on a full disk
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            got = FeatureCache(sys.argv[1]).features(model, pictures, 'layer1', batch=2)
        assert torch.equal(got, extract_features(model, pictures, 'layer1', batch=2)) and got.numel() * 4 > 100_000
        print(*[w.message for w in said], os.listdir(sys.argv[1]))'''
    out = finished(start(code, tmp_path/'cache'))
    assert 'File too large; this cache now keeps features in memory' in out and out.endswith('[]')


MEMORY = '''
import resource
class Drawn:
    "20,000 pictures that exist only while somebody looks at them."
    def __len__(self): return 20_000
    def __getitem__(self, rows):
        first, last, _ = rows.indices(20_000)
        return np.random.default_rng(first).integers(0, 256, (last - first, 64, 64, 3), dtype=np.uint8)
now = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
before = now()
if sys.argv[2] == 'file': got = FeatureCache(sys.argv[1], limit=1 << 34).features(model, Drawn(), sys.argv[3], progress=False)
else: got = extract_features(model, Drawn(), sys.argv[3], dtype=torch.float16, progress=False)
assert len(got) == 20_000
print(got.numel() * got.element_size(), now() - before)
'''


@pytest.mark.slow
@pytest.mark.skipif(os.name != 'posix', reason='memory is measured in the POSIX way')
@pytest.mark.parametrize('kind, cut', [('file', 'layer1'), ('memory', 'head')])
def test_twenty_thousand_pictures_in_less_than_a_gigabyte(kind, cut, tmp_path):
    size, peak = map(int, finished(start(MEMORY, tmp_path, kind, cut)).split())
    assert peak < 1 << 30
    if kind == 'file': assert size > 1 << 30, 'the features themselves are larger than the memory allowed'


# ------------------------------------------------------------------ what it costs, and whether it pays

def counted(model, pictures):
    "Multiply-adds of one example by stage, counted with hooks on the layers."
    found = dict.fromkeys(model.names, 0)
    def hook(layer, given, result, stage): found[stage] += result.numel() * layer.weight[0].numel()
    layers = [(m, s) for s, stage in model.stages.items() for m in stage.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [m.register_forward_hook(partial(hook, stage=s)) for m, s in layers]
    run(model, pictures[:1])
    for h in hooks: h.remove()
    return found


@pytest.mark.parametrize('cut', CUTS)
def test_cost_is_what_hooks_count(model, pictures, cut):
    found = counted(model, pictures); k = model.names.index(cut)
    below, high = sum(list(found.values())[:k]), sum(list(found.values())[k:])
    cost = cost_of_cut(model, pictures, cut, epochs=10, dtype=torch.float16)
    assert (cost['below'], cost['above']) == (below, high) and json.dumps(cost)
    assert cost['bytes'] == extract_features(model, pictures[:1], cut, dtype=torch.float16).numel() * 2
    assert cost['saving'] == 10 * (below + 3 * high) / (below + 30 * high)
    four = cost_of_cut(model, pictures, cut, epochs=10, views=4, dtype=torch.float16)
    assert four['bytes'] == 4 * cost['bytes'] and four['cached'] - cost['cached'] == 3 * below


def test_cost_leaves_the_model_as_it_was(model, pictures):
    model.train(); before, state = modes(model), copy.deepcopy(model.state_dict())
    cost_of_cut(model, pictures, 'layer2')
    assert modes(model) == before and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


PAYS = [(dict(cut='head', epochs=10), True, '10.0 times less arithmetic in 10 epochs'), (dict(cut='layer4', epochs=5), True, 'times less'),
        (dict(cut='head', epochs=1), False, '1 view once is no less work than'), (dict(cut='head', epochs=4, views=4), False, '4 views once'),
        (dict(cut='head', epochs=40, views=4), True, '10.0 times less'), (dict(cut='stem', epochs=10), False, "below 'stem'"),
        (dict(cut=None, epochs=10), False, 'nothing to keep'), (dict(cut='layer1', epochs=10), False, 'only 1.0 times less'),
        (dict(cut='head', epochs=10, limit=1000), False, 'more than the limit'), (dict(cut=-1, epochs=10), True, "'head'")]


@pytest.mark.parametrize('wish, verdict, words', PAYS)
def test_caching_pays_says_why(model, pictures, wish, verdict, words):
    pays, reason = caching_pays(model, pictures, **wish)
    assert pays is verdict and words in reason and reason.endswith('.') and '. ' not in reason


def test_cost_of_text_stages(reader):
    cost = cost_of_cut(reader, TEXTS, 'head', epochs=3)
    assert cost['below'] == 2 * len(TEXTS[0]) * 64 and cost['above'] == 16 and cost['bytes'] == len(TEXTS[0]) * (8 * 4 + 1)
    assert caching_pays(reader, TEXTS, 'head', 10)[0]
