"Backbones: stages equal to torchvision's networks, weights refused or fetched, random numbers left alone, bad input."
import math
import copy, hashlib, io, json, os, pickle, shutil, subprocess, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
import torchvision.models as tvm
from safetensors.torch import save_file

from transfer_course import backbones as B
from transfer_course.backbones import WeightsError, attach_head, list_backbones, load_backbone

NAMES = list(B._KINDS)
TORCHVISION = [n for n in NAMES if n != 'pocket-resnet']
SIDE = dict(inception_v3=96)


def load(name, **kw): return load_backbone(name, verbose=False, **kw)


def reference(name):
    "torchvision's own network with random weights and lively BatchNorm statistics."
    if name == 'pocket-resnet': net = B._KINDS[name].build(191)
    elif name == 'inception_v3': net = tvm.inception_v3(weights=None, init_weights=False, transform_input=True)   # with side exits, as published
    else: net = tvm.get_model(name, weights=None)
    g = torch.Generator().manual_seed(1)
    for _, b in net.named_buffers():
        if b.is_floating_point(): b.uniform_(0.5, 1.5, generator=g)
    return net.eval()


def one_sentence(error, *parts):
    text = str(error.value)
    assert text.endswith('.') and '\n' not in text and len(text) < 450, text
    for p in parts: assert p in text, (p, text)
    return text


# ---------------------------------------------------------------- stages
@pytest.mark.parametrize('name', NAMES)
def test_stages_equal_torchvision_bit_for_bit(name):
    net, kind = reference(name), B._KINDS[name]
    stages, classifier = B._load(kind, net.state_dict(), 'memory')
    model = B._bare(kind, stages, classifier=classifier).original()
    x = torch.rand(2, 3, SIDE.get(name, 64), SIDE.get(name, 64))
    with torch.inference_mode():
        assert torch.equal(model(x), net(x))
        y = x.contiguous(memory_format=torch.channels_last)
        assert torch.equal(model(y), net(y))
        assert model(x, stop='head').shape[1] == kind.features


@pytest.mark.parametrize('name', NAMES)
def test_stored_parameter_counts(name):
    with torch.device('meta'): net = B._KINDS[name].build(191 if name == 'pocket-resnet' else 1000)
    table = list_backbones().set_index('name')
    assert table.parameters[name] == sum(p.numel() for p in net.parameters())
    if name != 'inception_v3' and name != 'pocket-resnet': assert table.parameters[name] == B._KINDS[name].enum.meta['num_params']


def test_stage_names_and_order():
    assert attach_head(load('pocket-resnet'), ['a', 'b']).names == ['stem', 'layer1', 'layer2', 'layer3', 'layer4', 'head']
    for name, stages in dict(vgg16='block1 block2 block3 block4 block5 fc', inception_v3='stem mixed5 mixed6 mixed7',
                             efficientnet_b0='stem block1 block2 block3 block4 block5 block6 block7 top').items():
        with torch.device('meta'): assert list(B._KINDS[name].split(B._KINDS[name].build())[0]) == stages.split()


def test_forward_from_and_up_to_a_stage():
    m = attach_head(load('pocket-resnet'), ['a', 'b'])
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        for cut in m.names: assert torch.equal(m(m(x, stop=cut), start=cut), m(x))
        assert torch.equal(m(x, stop='stem'), x) and m(x, 'stem', 'layer2').shape == (2, 64, 16, 16)
    with pytest.raises(ValueError) as e: m(x, stop='layer9')
    one_sentence(e, 'layer9', 'layer4')


def test_stages_may_hand_on_anything():
    "A text stage hands on a pair (hidden states, mask): nothing in StagedModel asks for a tensor."
    class Embed(torch.nn.Module):
        def forward(self, x): return x['ids'].float()[..., None].expand(-1, -1, 4), x['mask']
    class Layer(torch.nn.Module):
        def forward(self, x): return x[0] * 2, x[1]
    class Mean(torch.nn.Module):
        def forward(self, x): return (x[0] * x[1][..., None]).sum(1) / x[1].sum(1, keepdim=True)
    tokens = lambda texts: dict(ids=torch.tensor([[len(t), 1, 0] for t in texts]), mask=torch.tensor([[1., 1., 0.]] * len(texts)))
    make = lambda seed: dict(embeddings=Embed(), layer0=Layer())
    b = B.Backbone('words', 'BERT', torch.nn.ModuleDict(make(0)), 4, tokens, Mean, make)
    m = attach_head(b, ['no', 'yes'])
    x = m.preprocess(['a', 'bcd'])
    assert m(x).shape == (2, 2) and torch.equal(m(m(x, stop='layer0'), start='layer0'), m(x)) and m.randomize_(1) is m


# ---------------------------------------------------------------- pictures
@pytest.mark.parametrize('name', TORCHVISION)
def test_preprocess_equals_the_weights_transforms(name):
    p = np.random.default_rng(0).integers(0, 256, (2, 90, 120, 3), dtype=np.uint8)
    transforms, pre = B._KINDS[name].enum.transforms(), B.PictureInput(B._KINDS[name].enum.transforms())
    chw = torch.tensor(p).permute(0, 3, 1, 2)
    out = pre(p)
    assert torch.equal(out, transforms(chw)) and out.is_contiguous(memory_format=torch.channels_last) and out.dtype == torch.float32
    assert torch.equal(out[:1], pre(p[:1])) and torch.equal(out, pre(torch.tensor(p)))


def test_pocket_takes_pictures_as_they_come():
    pre, p = load('pocket-resnet').preprocess, np.random.default_rng(0).integers(0, 256, (2, 96, 64, 3), dtype=np.uint8)
    p.setflags(write=False)
    x, keep = pre(p), p.copy()
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    assert x.shape == (2, 3, 96, 64) and np.allclose(x.permute(0, 2, 3, 1), (p / 255 - mean) / std, atol=1e-5) and (p == keep).all()


@pytest.mark.parametrize('turned', [lambda p: p[:, :, ::-1], lambda p: p[:, ::-1], lambda p: p[::-1], lambda p: p[..., ::-1],
                                    lambda p: p.transpose(0, 2, 1, 3)[:, ::2]])
def test_pictures_may_be_views_of_an_array_in_any_direction(turned):
    pictures = turned(np.random.default_rng(0).integers(0, 256, (3, 80, 64, 3), dtype=np.uint8))
    assert torch.equal(B.PictureInput()(pictures), B.PictureInput()(pictures.copy()))


def test_the_middle_of_a_picture():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 50, 80, 3), np.uint8); all_of_it, middle = B.PictureInput()(pictures), B.PictureInput(centre=.8)
    assert middle.seen(50, 80) == (40, 64) and torch.equal(middle(pictures), all_of_it[:, :, 5:45, 8:72])
    assert torch.equal(middle(pictures, whole=True), all_of_it)
    assert B.PictureInput().seen(50, 80) == (50, 80) and middle(pictures).is_contiguous(memory_format=torch.channels_last)
    for odd in (0, 1.1, -.5, '80%', None, math.nan):
        with pytest.raises(ValueError, match='share of each side'): B.PictureInput(centre=odd)
    with pytest.raises(ValueError, match='too small where 50% of each side is looked at; this backbone needs at least 32'): B.PictureInput(centre=.5)(pictures)
    net = B.load_backbone('pocket-resnet', centre=.8, verbose=False)
    assert net.preprocess.centre == .8 and 'middle 80%' in repr(net) and 'middle' not in repr(B.load_backbone('pocket-resnet', verbose=False))
    for name, why in (('resnet18', 'a crop of its own'), ('minilm', 'reads texts')):
        with pytest.raises(ValueError, match=why): B.load_backbone(name, pretrained=False, centre=.8, verbose=False)



@pytest.mark.parametrize('bad', [np.zeros((2, 96, 96, 3), np.float32), np.zeros((96, 96, 3), np.uint8), np.zeros((2, 3, 96, 96), np.uint8),
                                 np.zeros((2, 16, 16, 3), np.uint8), np.zeros((2, 96, 96), np.uint8)])
def test_pictures_that_are_none(bad):
    with pytest.raises(ValueError) as e: B.PictureInput()(bad)
    one_sentence(e)


# ---------------------------------------------------------------- heads and random weights
def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


@pytest.mark.parametrize('name', ['pocket-resnet', 'resnet18', 'efficientnet_b0'])
def test_random_is_torchvisions_own_initialisation(name):
    torch.manual_seed(3)
    net = B._KINDS[name].split(B._KINDS[name].build().eval())[0]
    assert same(torch.nn.ModuleDict(net), load(name, pretrained=False).random(3).stages)


def test_no_random_number_is_taken_from_the_global_generator():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    b = load('pocket-resnet')
    m = attach_head(b, ['a', 'b'], dropout=0.1, seed=1)
    load('pocket-resnet', pretrained=False); b.random(2); m.randomize_(3); m.reset_head_(4); list_backbones(); b.original()
    assert torch.equal(state, torch.random.get_rng_state())


def test_seeds():
    b = load('pocket-resnet')
    assert same(b.random(1).stages, b.random(1).stages) and not same(b.random(1).stages, b.random(2).stages)
    m, n = attach_head(b, ['a', 'b'], seed=1), attach_head(b, ['a', 'b'], seed=2)
    assert same(m.stages['layer4'], n.stages['layer4']) and not same(m.stages['head'], n.stages['head'])
    assert same(m.reset_head_(2), n) and same(m.randomize_(7), attach_head(b.random(7), ['a', 'b'], seed=7))


def test_randomize_works_in_place():
    m = attach_head(load('pocket-resnet'), ['a', 'b'])
    for p in m.stages['stem'].parameters(): p.requires_grad = False
    m.stages['stem'].bn1.num_batches_tracked += 5
    ids = [id(p) for p in m.parameters()]
    m.to(memory_format=torch.channels_last).randomize_(1)
    assert ids == [id(p) for p in m.parameters()] and m.stages['stem'].bn1.num_batches_tracked == 0
    assert not m.stages['stem'].conv1.weight.requires_grad and m.stages['layer1'][0].conv1.weight.requires_grad


def test_the_backbone_is_never_changed():
    b = load('pocket-resnet')
    keep = copy.deepcopy(b.stages.state_dict())
    m = attach_head(b, ['a', 'b']).train()
    opt = torch.optim.SGD(m.parameters(), 0.1)
    m(torch.rand(4, 3, 32, 32)).sum().backward(); opt.step(); m.randomize_(0)
    assert all(torch.equal(v, keep[k]) for k, v in b.stages.state_dict().items()) and b.classifier.weight.grad is None


def test_head():
    class Some: classes = ['cat', 'dog', 'owl']
    b = load('pocket-resnet')
    m = attach_head(b, Some(), dropout=0.25)
    assert list(dict(m.stages['head'].named_children())) == ['pool', 'flatten', 'dropout', 'linear'] and m.stages['head'].dropout.p == 0.25
    assert m.classes == Some.classes and m.backbone == 'pocket-resnet' and not m.training and all(p.requires_grad for p in m.parameters())
    assert m(m.preprocess(np.zeros((2, 48, 40, 3), np.uint8))).shape == (2, 3)
    for bad in (['one'], [], ['a', 'a'], 'cat'):
        with pytest.raises(ValueError) as e: attach_head(b, bad)
        one_sentence(e)
    with pytest.raises(ValueError) as e: attach_head(b, ['a', 'b'], dropout=1)
    one_sentence(e)
    with pytest.raises(ValueError) as e: attach_head('pocket-resnet', ['a', 'b'])
    one_sentence(e, 'load_backbone')


def test_hostile_class_names_stay_data():
    names = ['<script>alert(1)</script>', "a'\"\n$\\frac$", 'häuslich 🐈', '../../etc', 'stages.head']
    m = attach_head(load('pocket-resnet'), names)
    assert m.classes == names and m(torch.rand(1, 3, 32, 32)).shape == (1, 5)
    assert '\n$' not in repr(m) and not hasattr(m, '_repr_html_')
    assert '<script>' not in list_backbones().assign(name=names[0])._repr_html_()


def test_models_can_be_copied_and_sent():
    m = attach_head(load('pocket-resnet'), ['a', 'b'])
    x = torch.rand(1, 3, 32, 32)
    for n in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert torch.equal(n(x), m(x)) and same(n.randomize_(1), attach_head(load('pocket-resnet').random(1), ['a', 'b'], seed=1))


# ---------------------------------------------------------------- names and tables
def test_unknown_name():
    with pytest.raises(ValueError) as e: load('resnet19')
    one_sentence(e, 'resnet19', 'did you mean')
    with pytest.raises(ValueError) as e: load('<b>')
    one_sentence(e, 'list_backbones()')


@pytest.mark.alone
def test_list_is_quick_and_says_what_is_here(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    start = time.perf_counter(); t = list_backbones(); seconds = time.perf_counter() - start
    assert seconds < 1 and list(t.name[:9]) == NAMES and list(t.here[:9]) == ['yes'] + ['no'] * 8    # those that read follow: see test_text_models
    assert set(t.columns) == {'name', 'family', 'year', 'parameters', 'input', 'weights from', 'here'}
    B._cached(B._KINDS['vgg16'].enum).parent.mkdir(parents=True); B._cached(B._KINDS['vgg16'].enum).touch()
    assert list_backbones().set_index('name').here['vgg16'] == 'yes'


def test_import_brings_no_plotting_and_no_tables():
    code = 'import sys, transfer_course.backbones; print([m for m in ("pandas", "matplotlib", "sklearn", "transformers") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


# ---------------------------------------------------------------- the weights that ship
def test_pocket_weights():
    b, notes = load('pocket-resnet'), B._notes(B._pocket())
    held_out = 'n02085620 n02094433 n02099601 n02099712 n02106662 n02113799 n02123045 n02123394 n02124075'.split()
    assert b.pretrained and len(b.classes) == len(notes['wnids']) == 191 and not set(notes['wnids']) & set(held_out)
    assert b.original()(torch.rand(1, 3, 64, 64)).shape == (1, 191) and B._pocket().stat().st_size < 12e6
    assert all(p.dtype == torch.float32 for p in b.stages.parameters())


@pytest.mark.parametrize('damage', [lambda d: d[:-1000], lambda d: d[:5000] + bytes([d[5000] ^ 1]) + d[5001:]])
def test_damaged_pocket_weights_are_refused(damage, tmp_path, monkeypatch):
    f = tmp_path/'pocket_resnet.safetensors'
    f.write_bytes(damage(B._pocket().read_bytes())); shutil.copy(B._pocket().with_suffix('.json'), tmp_path)
    monkeypatch.setattr(B, '_pocket', lambda: f)
    with pytest.raises(WeightsError) as e: load('pocket-resnet')
    one_sentence(e, 'checksum', str(f))


def test_pocket_weights_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(B, '_pocket', lambda: tmp_path/'none.safetensors')
    with pytest.raises(WeightsError) as e: load('pocket-resnet')
    one_sentence(e, 'none.safetensors')


# ---------------------------------------------------------------- checkpoints
@pytest.fixture(scope='module')
def state(): return reference('pocket-resnet').state_dict()


def test_checkpoints_load(tmp_path, state):
    forms = dict(plain=state, model=dict(model=state, epoch=3), state_dict=dict(state_dict={f'module.{k}': v for k, v in state.items()}),
                 headless={k: v for k, v in state.items() if not k.startswith('fc.')})
    for form, s in forms.items():
        torch.save(s, tmp_path/f'{form}.pth')
        b = load('pocket-resnet', weights=tmp_path/f'{form}.pth')
        assert b.pretrained and form in b.source and torch.equal(b.stages['layer4'][0].conv2.weight, state['layer4.0.conv2.weight'])
        assert (b.classifier is None) == (form == 'headless') and b.classes is None
    save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, tmp_path/'half.safetensors')
    b = load('pocket-resnet', weights=str(tmp_path/'half.safetensors'))
    assert b.stages['stem'].conv1.weight.dtype == torch.float32 and b.original().classes[0] == 'class 0'


def test_a_card_beside_the_checkpoint_is_heeded(tmp_path, state):
    f = tmp_path/'mine.safetensors'
    save_file(state, f)
    f.with_suffix('.json').write_text(json.dumps(dict(sha256=hashlib.sha256(f.read_bytes()).hexdigest(), names=[f'n{i}' for i in range(191)])))
    assert load('pocket-resnet', weights=f).classes[190] == 'n190'
    f.with_suffix('.json').write_text(json.dumps(dict(sha256='0' * 64)))
    with pytest.raises(WeightsError) as e: load('pocket-resnet', weights=f)
    one_sentence(e, 'checksum')


def test_checkpoints_of_another_network(tmp_path, state):
    def load_as(s, name='pocket-resnet'):
        torch.save(s, tmp_path/'x.pth')
        with pytest.raises(WeightsError) as e: load(name, weights=tmp_path/'x.pth')
        return e
    one_sentence(load_as(state, 'resnet18'), 'layer1.1.conv1.weight', 'missing')
    one_sentence(load_as(state, 'vgg16'), 'not part of it')
    one_sentence(load_as(state | {'conv1.weight': torch.zeros(64, 1, 7, 7)}), "'conv1.weight' has shape [64, 1, 7, 7] instead of [64, 3, 7, 7]")
    one_sentence(load_as({k: v for k, v in state.items() if k != 'fc.bias'}), "'fc.bias' is missing")
    one_sentence(load_as(dict(weights=[1, 2, 3])), 'state dict')
    one_sentence(load_as({}), 'state dict')
    with pytest.raises(ValueError) as e: load('pocket-resnet', pretrained=False, weights=tmp_path/'x.pth')
    one_sentence(e)


class Boom:
    def __reduce__(self): return (os.system, (f'touch {Boom.mark}',))


def test_no_code_in_a_checkpoint_is_run(tmp_path, state):
    Boom.mark = tmp_path/'ran'
    for name, data in dict(modern=True, legacy=False).items():
        torch.save(dict(state) | dict(extra=Boom()), tmp_path/f'{name}.pth', _use_new_zipfile_serialization=data)
        with pytest.raises(WeightsError) as e: load('pocket-resnet', weights=tmp_path/f'{name}.pth')
        one_sentence(e, 'Python objects')
    assert not Boom.mark.exists()


def test_files_that_are_no_checkpoints(tmp_path, state):
    torch.save(state, tmp_path/'x.pth'); save_file(state, tmp_path/'x.safetensors')
    for f in (tmp_path/'x.pth', tmp_path/'x.safetensors'): (tmp_path/f'cut{f.suffix}').write_bytes(f.read_bytes()[:100_000])
    (tmp_path/'text.pth').write_text('<html>sign in</html>'); (tmp_path/'d.pth').mkdir()
    for f in ('empty.pth', 'empty.safetensors'): (tmp_path/f).touch()
    for f in 'cut.pth cut.safetensors text.pth empty.pth empty.safetensors d.pth none.pth none.safetensors'.split():
        with pytest.raises(WeightsError) as e: load('pocket-resnet', weights=tmp_path/f)
        one_sentence(e, f)


# ---------------------------------------------------------------- downloads, through the real code, from a server on this machine
@pytest.fixture(scope='module')
def blob():
    "A real checkpoint of resnet18, in half precision."
    f = io.BytesIO()
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in reference('resnet18').state_dict().items()}, f)
    return f.getvalue()


@pytest.fixture(scope='module')
def server(blob):
    class Handler(BaseHTTPRequestHandler):
        hits = []
        def do_GET(self):
            how = self.path.split('/')[1]; Handler.hits.append(how)
            if how.isdigit(): return self.send_error(int(how))
            if how == 'stall': return time.sleep(2)
            body = dict(wrong=b'x' * len(blob), page=b'<html>sign in</html>').get(how, blob)
            self.send_response(200)
            if how != 'nolength': self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            self.wfile.write(body[:len(body) // 2] if how in ('cut', 'nolength') else body)
        def log_message(self, *a): pass
    s = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s, Handler.hits
    s.shutdown(); s.server_close()


@pytest.fixture
def url(server, blob, tmp_path, monkeypatch):
    "Point resnet18's weights at a behaviour of the server, with an empty cache."
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'home')); monkeypatch.setenv('no_proxy', '127.0.0.1')
    enum, mark = tvm.ResNet18_Weights.IMAGENET1K_V1, hashlib.sha256(blob).hexdigest()[:8]
    here = f'http://127.0.0.1:{server[0].server_address[1]}'
    def point(how, base=here): monkeypatch.setattr(enum.value, 'url', f'{base}/{how}/resnet18-{mark}.pth')
    return point


def left_behind(tmp_path): return [p for p in (tmp_path/'home').rglob('*') if p.is_file()]


def test_download_then_cache(url, server, tmp_path, capsys):
    url('good')
    b = load('resnet18')
    assert b.pretrained and len(b.classes) == 1000 and 'IMAGENET1K_V1' in b.source and len(left_behind(tmp_path)) == 1
    assert list_backbones().set_index('name').here['resnet18'] == 'yes'
    url('404'); before = len(server[1])
    assert same(load('resnet18').stages, b.stages) and len(server[1]) == before


@pytest.mark.parametrize('how, words', [(h, 'checksum') for h in ('cut', 'nolength', 'wrong', 'page')] + [(h, h) for h in ('403', '404', '503')])
def test_download_faults(how, words, url, tmp_path):
    url(how)
    with pytest.raises(WeightsError) as e: load('resnet18')
    one_sentence(e, words, 'resnet18', 'pocket-resnet', 'pretrained=False')
    assert left_behind(tmp_path) == []


@pytest.mark.alone
def test_a_silent_server_is_given_up(url, tmp_path):
    url('stall')
    start = time.perf_counter()
    with pytest.raises(WeightsError) as e: B._fetch(B._KINDS['resnet18'], seconds=0.3)
    one_sentence(e, 'in time', 'pocket-resnet')
    assert time.perf_counter() - start < 2 and left_behind(tmp_path) == []


@pytest.mark.parametrize('base', ['http://127.0.0.1:9', 'https://no-such-host.invalid'])
def test_no_network(base, url, tmp_path, monkeypatch):
    url('x', base=base)
    for v in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY'): monkeypatch.delenv(v, raising=False)
    start = time.perf_counter()
    with pytest.raises(WeightsError) as e: load('resnet18')
    one_sentence(e, 'not on this machine', 'pocket-resnet', 'pretrained=False')
    assert time.perf_counter() - start < 8 and left_behind(tmp_path) == []


@pytest.mark.alone
def test_a_name_server_that_is_silent(monkeypatch):
    monkeypatch.setattr(B.socket, 'getaddrinfo', lambda *a: time.sleep(1))
    start = time.perf_counter()
    assert not B._resolves('example.org', seconds=0.1) and time.perf_counter() - start < 0.5


def test_a_cache_that_can_not_be_written(url, tmp_path):
    url('good'); (tmp_path/'home').write_text('a file where the folder should be')
    with pytest.raises(WeightsError) as e: load('resnet18')
    one_sentence(e, 'pocket-resnet')


@pytest.mark.parametrize('damage', [lambda d: d[:len(d) // 2], lambda d: b'', lambda d: b'<html>sign in</html>', lambda d: d[:-1] + b'!'])
def test_damaged_files_in_the_cache_are_refused(damage, url, blob):
    url('good')
    f = B._cached(B._KINDS['resnet18'].enum); f.parent.mkdir(parents=True); f.write_bytes(damage(blob))
    with pytest.raises(WeightsError) as e: load('resnet18')
    one_sentence(e, 'checksum', 'delete it')


@pytest.mark.parametrize('name', TORCHVISION)
def test_every_weight_file_has_a_checksum_in_its_name(name):
    assert B.re.search(r'-([0-9a-f]{8,})\.', B._cached(B._KINDS[name].enum).name)


@pytest.mark.parametrize('name', NAMES)
def test_pretrained_false(name, capsys):
    b = load_backbone(name, pretrained=False)
    assert not b.pretrained and b.classifier is None and 'random' in b.source and capsys.readouterr().out.count('\n') == 1
    with pytest.raises(ValueError) as e: b.original()
    one_sentence(e)


def test_any_file_may_lie_beside_a_checkpoint(tmp_path):
    torch.save(B._kind('pocket-resnet').build().state_dict(), tmp_path/'model.pt'); card = tmp_path/'model.json'
    for text in (b'{"epoch": 1}\n{"epoch": 2}', b'', b'[1, 2]', '{"a": "\u00e9"}'.encode('latin-1'), b'{"sha256": 5, "names": "ab"}', b'{"names": [1, 2]}',
                 b'{"names": ["too", "few"]}'):
        card.write_bytes(text); net = B.load_backbone('pocket-resnet', weights=tmp_path/'model.pt', verbose=False)
        assert net.classes is None and net.original().classes[:2] == ['class 0', 'class 1'], text
    card.write_text('{"sha256": "%s"}' % ('0' * 64))
    with pytest.raises(B.WeightsError): B.load_backbone('pocket-resnet', weights=tmp_path/'model.pt', verbose=False)
