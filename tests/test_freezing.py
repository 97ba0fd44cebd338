"Frozen means frozen: bugs from well-known tutorials are all caught, and no correct model is accused."
import copy
import json
from html import escape
from types import SimpleNamespace as Record

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from transfer_course.backbones import attach_head, load_backbone
from transfer_course.backstage.evidence import Counter, call, costs_of, example_of, sides_of
from transfer_course.freezing import FreezeReport, cut_of, freeze_proof, freeze_until, is_frozen, learning_rates, stages_of, thaw
from transfer_course.training import Phase, Plan, fit


class Block(nn.Module):
    "One layer of a small transformer, with attention and dropout as functions."
    def __init__(self, width=16, dropout=.3):
        super().__init__()
        self.norm1, self.norm2, self.qkv, self.out = nn.LayerNorm(width), nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp, self.rate = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.Dropout(dropout)), dropout

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).view(*x.shape[:2], 3, 2, -1).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, dropout_p=self.rate if self.training else 0.)
        x = x + self.out(a.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Embeddings(nn.Module):
    def __init__(self, words=30, width=16):
        super().__init__()
        self.word, self.position, self.norm, self.dropout = nn.Embedding(words, width), nn.Embedding(8, width), nn.LayerNorm(width), nn.Dropout(.3)
    def forward(self, x): return self.dropout(self.norm(self.word(x) + self.position.weight[:x.shape[1]]))


class FirstWord(nn.Module):
    def forward(self, x): return x[:, 0]


class HfLayer(nn.Module):
    "A layer of transformers' BERT as a stage."
    def __init__(self, layer): super().__init__(); self.layer = layer
    def forward(self, x):
        y = self.layer(x)
        return y if torch.is_tensor(y) else y[0]


def named(**stages):
    net = nn.Sequential()
    for name, m in stages.items(): net.add_module(name, m)
    return net


def text_net(): return named(embeddings=Embeddings(), layer0=Block(), layer1=Block(), head=nn.Sequential(FirstWord(), nn.Dropout(.1), nn.Linear(16, 2)))


def bert_net():
    from transformers import BertConfig, BertModel
    with torch.random.fork_rng():
        bert = BertModel(BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                                    max_position_embeddings=16), add_pooling_layer=False)
    layers = {f'layer{i}': HfLayer(m) for i, m in enumerate(bert.encoder.layer)}
    return named(embeddings=bert.embeddings, **layers, head=nn.Sequential(FirstWord(), nn.Linear(16, 2)))


def conv_net():
    "Convolutions with norms and dropout, whose children are its stages."
    block = lambda a, b: nn.Sequential(nn.Conv2d(a, b, 3, 2), nn.BatchNorm2d(b), nn.ReLU(inplace=True), nn.Dropout(.2))
    return named(stem=block(3, 4), body=block(4, 8), head=new_head())


def new_head(): return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
def plain_net(): return named(stem=nn.Conv2d(3, 4, 3, 2), act=nn.ReLU(), body=nn.Conv2d(4, 8, 3, 2), head=new_head())


def old_style_net():
    "InstanceNorm, GroupNorm and a norm that was frozen for good."
    return named(stem=nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.InstanceNorm2d(4, affine=True)), mid=nn.Sequential(nn.Conv2d(4, 4, 3), FrozenBatchNorm2d(4)),
                 body=nn.Sequential(nn.Conv2d(4, 8, 3, 2), nn.GroupNorm(2, 8)), head=new_head())


def staged(name, size=64):
    "One of the course's networks with random weights, taking pictures as they are."
    model = attach_head(load_backbone(name, pretrained=False, verbose=False), ['cat', 'dog'], dropout=.2)
    if model.preprocess.transforms is not None: model.preprocess.transforms = lambda x: F.interpolate(x.float() / 255, (size, size))
    return model


def pocket(): return staged('pocket-resnet')
def body(net): return [m for m in list(stages_of(net).values())[:-1]]
def head(net): return list(stages_of(net).values())[-1]
def still(net):
    "What the tutorials call freezing."
    for m in body(net): m.requires_grad_(False)
    return net
def state(net): return {k: v.clone() for k, v in net.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def pictures(): return Record(train=Record(inputs=np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3), dtype=np.uint8), labels=np.arange(6) % 2))
def tensors(): return Record(train=Record(inputs=torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)), labels=np.arange(6) % 2))
def texts(): return Record(train=Record(inputs=torch.randint(0, 30, (6, 7), generator=torch.Generator().manual_seed(0)), labels=np.arange(6) % 2))
def plan(*starts, lr=1e-2): return Record(batch=6, phases=[Record(start=s, lr=lr) for s in starts])
def one_batch(net, task):
    x = getattr(net, 'preprocess', torch.as_tensor)(task.train.inputs)
    return F.cross_entropy(net(x), torch.as_tensor(task.train.labels))


def looped(freeze=lambda net: None, optimizer=None, each=lambda net: net.train(), epochs=2, clear=True):
    "A training loop of two steps as tutorials have it."
    def step(net, task, plan, phase):
        freeze(net)
        opt = optimizer(net)
        for _ in range(epochs):
            each(net)
            opt.zero_grad(set_to_none=clear)
            one_batch(net, task).backward(); opt.step()
    return step


def head_only(net): return torch.optim.SGD(head(net).parameters(), .1)
def trainable(net): return torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], .01)
def everything(net): return torch.optim.AdamW(net.parameters(), .01, weight_decay=.1)


# ---- the planted bugs ----

NETS = [(pocket, pictures), (conv_net, tensors)]


@pytest.mark.parametrize('make, task', NETS)
def test_bug_statistics_drift(make, task):
    "requires_grad=False, and nothing else."
    net = still(make())
    found = FreezeReport(net.train(), head_only(net)).problems
    assert len(found) >= len(body(net)) and all('batch statistics' in p and 'running statistics move' in p for p in found if 'norms' in p)
    assert any("Stage 'stem' is frozen, but its norms use batch statistics" in p for p in found)
    proof = freeze_proof(make(), task(), plan('head'), looped(still, head_only))
    assert not proof.ok and all('buffers moved' in r['verdict'] and not r['parameters_moved'] for r in proof.rows[:-1])
    assert proof.rows[-1]['verdict'] == 'trains'


@pytest.mark.parametrize('make, task', [*NETS, (text_net, texts)])
def test_bug_head_frozen_with_the_body(make, task):
    def freeze(net):
        for p in net.parameters(): p.requires_grad = False
    net = make(); freeze_until(net, -1); freeze(net)
    found = FreezeReport(net).problems
    assert found == ["The head 'head' is frozen with the body: the new task cannot be learned; thaw(model, 'head') lets it train."]
    def step(net, task, plan, phase): freeze(net); opt = torch.optim.SGD(net.parameters(), .1); net.eval(); one_batch(net, task); opt.step()
    row = freeze_proof(make(), task(), plan('head'), step).rows[-1]
    assert not row['ok'] and 'no parameter takes a gradient' in row['verdict'] and 'no parameter moved' in row['verdict']


def test_bug_head_frozen_while_the_body_trains():
    net = conv_net(); net.head.requires_grad_(False)
    assert FreezeReport(net).problems == ["The head 'head' is frozen: the new task cannot be learned; thaw(model, 'head') lets it train."]


@pytest.mark.parametrize('make, task', [*NETS, (text_net, texts)])
def test_bug_optimizer_built_before_thawing(make, task):
    net = freeze_until(make(), 'head'); opt = trainable(net); assert FreezeReport(net, opt).problems == []
    last = list(stages_of(net))[-2]
    thaw(net, last)
    found = FreezeReport(net, opt).problems
    assert len(found) == 1 and f'lacks trainable parameters of stage {last!r}' in found[0] and 'build it anew' in found[0]
    kept = {}
    def step(net, task, plan, phase):
        freeze_until(net, phase.start)
        opt = kept.setdefault('opt', None) or kept.setdefault('first', trainable(net)); kept['opt'] = opt
        net.train(); opt.zero_grad(); one_batch(net, task).backward(); opt.step()
    proof = freeze_proof(make(), task(), plan('head', last), step)
    assert [r['stage'] for r in proof.rows if not r['ok']] == [last] and proof.problems[0].startswith(f"Phase 2, stage {last!r}: does not train as promised")
    assert 'no optimizer holds' in proof.problems[0]


def test_bug_optimizer_holds_the_old_head():
    net = freeze_until(conv_net(), 'head'); opt = trainable(net); net.head[2] = nn.Linear(8, 3)
    found = FreezeReport(net, opt).problems
    assert len(found) == 1 and "lacks trainable parameters of stage 'head' (2.weight and 1 more)" in found[0]


@pytest.mark.parametrize('make, task, comes', [
    (pocket, pictures, 'batch statistics'), (conv_net, tensors, 'batch statistics and dropout'), (text_net, texts, 'dropout')])
def test_bug_eval_undone_by_train(make, task, comes):
    def freeze(net):
        for m in body(still(net)): m.eval()
    net = make().train(); freeze(net)
    found = FreezeReport(net, head_only(net)).problems
    assert any(f'the next .train() will undo its inference mode and bring back {comes} (' in p for p in found) and len(found) == len(body(net))
    assert not any(m.training for stage in body(net) for m in stage.modules()), 'the report left its traces'
    proof = freeze_proof(make(), task(), plan('head'), looped(freeze, head_only))
    assert not any(r['ok'] for r in proof.rows[:-1] if r['parameters'])


@pytest.mark.parametrize('make', [text_net, bert_net])
def test_bug_dropout_on_in_a_frozen_part(make):
    net = still(make()).train()
    found = FreezeReport(net, head_only(net)).problems
    assert len(found) == 3 and all('dropout is on in it' in p for p in found)
    proof = freeze_proof(make(), texts(), plan('head'), looped(still, head_only))
    assert [r['ok'] for r in proof.rows] == [False] * 3 + [True] and all('dropout on' in r['verdict'] for r in proof.rows[:3])


def test_bug_dropout_stage_without_weights():
    net = named(body=nn.Linear(4, 8), drop=nn.Dropout(), norm=nn.BatchNorm1d(8, affine=False), head=nn.Linear(8, 2))
    net.body.requires_grad_(False); net.train()
    assert [p.split(',')[0] for p in FreezeReport(net).problems] == ["Stage 'drop' is frozen", "Stage 'norm' is frozen"]


@pytest.mark.parametrize('make, stages', [(text_net, 2), (bert_net, 2)])
def test_bug_dropout_that_no_module_shows(make, stages):
    "Every nn.Dropout is off, and attention still drops: it asks its own module for the mode."
    net = still(make())
    class Off(nn.Dropout):
        def train(self, mode=True): return super().train(False)
    for m in net.modules():
        if type(m) is nn.Dropout: m.__class__ = Off
    found = FreezeReport(net, head_only(net)).problems
    assert len(found) == stages and all('two different outputs for the same input' in p for p in found)


def tied_net(tie):
    "A language model in small: the last layer is the table of words, turned around."
    net = named(embeddings=Embeddings(), layer0=Block(), head=nn.Linear(16, 30))
    tie(net)
    return net


def share_parameter(net): net.head.weight = net.embeddings.word.weight
def share_memory(net): net.head.weight = nn.Parameter(net.embeddings.word.weight.data)


@pytest.mark.parametrize('tie', [share_parameter, share_memory])
def test_bug_tied_parameter_half_frozen(tie):
    def freeze(net):
        freeze_until(net, 'head')
        net.head.requires_grad_(True)
    net = tied_net(tie); freeze(net)
    found = [p for p in FreezeReport(net).problems if 'half frozen' in p]
    assert len(found) == 1 and "'embeddings.word.weight' is also 'head.weight', so training 'head' changes the frozen stage 'embeddings'" in found[0]
    def step(net, task, plan, phase):
        freeze(net); opt = trainable(net); net.train()
        net(task.train.inputs).square().mean().backward(); opt.step()
    proof = freeze_proof(tied_net(tie), texts(), plan('head'), step)
    assert not proof.rows[0]['ok'] and '1 of 4 parameters moved (word.weight)' in proof.rows[0]['verdict'] and proof.rows[1]['ok']


def test_bug_tied_parameter_frozen_in_the_head_too():
    found = FreezeReport(freeze_until(tied_net(share_parameter), 'head')).problems
    assert len(found) == 1 and "it stays frozen in 'head' as well" in found[0]


def test_bug_tied_parameter_is_all_of_a_stage():
    net = named(words=nn.Embedding(30, 16), layer0=Block(), head=nn.Linear(16, 30, bias=False)); net.head.weight = net.words.weight
    freeze_until(net, 'head'); net.head.requires_grad_(True)
    assert any("training 'head' changes the frozen stage 'words'" in p for p in FreezeReport(net).problems)


@pytest.mark.parametrize('norm', [dict(track_running_stats=False), dict()])
def test_bug_batch_statistics_that_do_not_move(norm):
    "As Lightning's `train_bn=False`: the drift is stopped, and the output still hangs on the rest of the batch."
    def build():
        net = conv_net()
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d): m.track_running_stats = norm.get('track_running_stats', True)
        return net
    net = still(build()).train()
    found = [p for p in FreezeReport(net, head_only(net)).problems if 'batch statistics' in p]
    assert len(found) == 2 and all(('running statistics move' in p) != bool(norm) for p in found)
    proof = freeze_proof(build(), tensors(), plan('head'), looped(still, head_only))
    assert all('batch statistics' in r['verdict'] and bool(r['buffers_moved']) != bool(norm) for r in proof.rows[:2])


def test_bug_norm_frozen_within_a_stage_that_trains():
    net = freeze_until(conv_net(), 'body'); net.body[1].requires_grad_(False)
    found = FreezeReport(net).problems
    assert len(found) == 1 and "Stage 'body' is partly frozen, but its norms use batch statistics (1)" in found[0]


@pytest.mark.parametrize('make, task', [*NETS, (text_net, texts)])
def test_bug_weight_decay_and_momentum_on_frozen_parameters(make, task):
    "Everything has trained a little; then the body is frozen, and the old optimizer goes on with gradients of zero."
    net = freeze_until(make(), 'head')
    found = FreezeReport(net, everything(net)).problems
    assert len(found) == len([m for m in body(net) if list(m.parameters())])
    assert all('holds frozen parameters' in p and 'momentum or weight decay' in p for p in found)
    def step(net, task, plan, phase):
        opt = everything(net)
        net.train(); one_batch(net, task).backward(); opt.step(); opt.zero_grad(set_to_none=False)
        still(net)
        for m in body(net): m.eval()
        before = [p.clone() for m in body(net) for p in m.parameters()]
        one_batch(net, task).backward(); opt.step()
        assert not all(torch.equal(a, b) for a, b in zip(before, (p for m in body(net) for p in m.parameters())))
    proof = freeze_proof(make(), task(), plan('head'), step)
    assert all('parameters moved' in r['verdict'] and 'an optimizer holds all of its parameters' in r['verdict'] for r in proof.rows[:-1])


def test_bug_buffers_of_unknown_modules():
    "Spectral norm keeps a vector that moves in training mode: no list of norms would find it; the proof does."
    def build(): return named(body=nn.utils.parametrizations.spectral_norm(nn.Linear(12, 4)), head=nn.Linear(4, 2))
    task = Record(train=Record(inputs=torch.rand(6, 12), labels=np.arange(6) % 2))
    proof = freeze_proof(build(), task, plan('head'), looped(still, head_only))
    assert not proof.ok and 'buffers moved' in proof.rows[0]['verdict']
    assert freeze_proof(build(), task, plan('head')).ok


# ---- correct models ----

MAKERS = dict(pocket=(pocket, pictures), resnet18=(lambda: staged('resnet18'), pictures), efficientnet=(lambda: staged('efficientnet_b0'), pictures),
              conv=(conv_net, tensors), plain=(plain_net, tensors), old=(old_style_net, tensors), text=(text_net, texts), bert=(bert_net, texts))


@pytest.mark.parametrize('name', MAKERS)
@pytest.mark.parametrize('statistics', ['adapt', 'keep'])
def test_no_correct_model_is_accused(name, statistics):
    net = MAKERS[name][0]()
    for stage in [None, *stages_of(net)]:
        if stage and not any(True for m in list(stages_of(net).values())[list(stages_of(net)).index(stage):] for _ in m.parameters()): continue
        freeze_until(net, stage, statistics)
        for mode in (True, False):
            net.train(mode); before, modes = state(net), [m.training for m in net.modules()]
            report = FreezeReport(net, torch.optim.AdamW(learning_rates(net, .1)))
            assert report.problems == [] and report.note == ''
            assert same(before, state(net)) and modes == [m.training for m in net.modules()] and not any(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize('name', MAKERS)
def test_proof_of_correct_models(name):
    make, task = MAKERS[name]
    net = make(); names = [n for n, m in stages_of(net).items() if any(True for _ in m.parameters())]
    before = state(net)
    proof = freeze_proof(net, task(), plan(*names[:-3:-1], lr=.05))
    assert proof.ok and proof.problems == [] and len(proof.rows) == 2 * len(stages_of(net)) and same(before, state(net))
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize('name, last, million', [('vgg16', 'classifier', 15_470), ('resnet18', 'fc', 1_814), ('efficientnet_b0', 'classifier', 386)])
def test_torchvision_networks_as_they_come(name, last, million):
    "Without memory for their weights; the multiply-adds at 224 pixels are those that torchvision's documentation gives."
    with torch.device('meta'): net = torchvision.models.get_model(name, weights=None)
    for mode in (True, False):
        report = FreezeReport(freeze_until(net, last).train(mode), torch.optim.SGD(learning_rates(net, .1)), torch.zeros(1, 3, 224, 224))
        assert report.problems == [] and report.note == '' and abs(sum(r['forward'] for r in report.stages) / 1e6 / million - 1) < .01
    assert not any(r['backward'] for r in report.stages[:-1]) and report.stages[-1]['backward']


def test_vgg_frozen_by_hand_is_not_accused():
    "Its convolutions have neither norms nor dropout: no gradient is all they need."
    with torch.device('meta'): net = torchvision.models.vgg16()
    net.features.requires_grad_(False)
    assert FreezeReport(net.train(), trainable(net), torch.zeros(1, 3, 64, 64)).problems == []


def still_in_eval(net):
    net.train()
    for m in body(net): m.eval()


@pytest.mark.parametrize('freeze, each', [(still, still_in_eval), (lambda net: freeze_until(net, -1), lambda net: net.train())])
@pytest.mark.parametrize('make, task', [*NETS, (text_net, texts)])
def test_correct_loops_pass_the_proof(make, task, freeze, each):
    assert freeze_proof(make(), task(), plan('head'), looped(freeze, head_only, each)).ok


def test_a_class_that_keeps_its_own_norms_still():
    "As detection libraries do it: `train` is overridden."
    class Keeps(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            for m in body(self): m.eval()
            return self
    net = still(Keeps(*conv_net()))
    assert FreezeReport(net.train(), head_only(net)).problems == []


def test_plain_freezing_is_enough_without_norms_and_dropout():
    assert FreezeReport(still(plain_net()).train()).problems == []
    assert FreezeReport(still(old_style_net()).train()).problems == []
    assert freeze_proof(plain_net(), tensors(), plan('head'), looped(still, head_only)).ok


def test_tied_on_one_side_and_everything_training():
    net = named(embeddings=Embeddings(), layer0=Block(), layer1=Block(), head=nn.Sequential(FirstWord(), nn.Linear(16, 2)))
    net.layer1 = net.layer0
    assert FreezeReport(net).problems == [] == FreezeReport(freeze_until(net, 'head')).problems
    assert FreezeReport(freeze_until(net, 'layer0')).problems == []
    tied = tied_net(share_parameter)
    assert FreezeReport(tied, everything(tied)).problems == []


def test_biases_alone_may_train():
    net = text_net()
    for n, p in net.named_parameters(): p.requires_grad_('bias' in n or 'head' in n)
    report = FreezeReport(net.train(), trainable(net))
    assert report.problems == [] and [r['state'] for r in report.stages] == ['partly', 'partly', 'partly', 'trains']


def test_fit_passes_the_proof():
    from transfer_course.tasks import Split, Task
    data = pictures().train
    part = lambda name: Split(name, data.inputs, data.labels, [f'{name}{i}' for i in range(6)])
    task = Task('noise', 'pictures', ['cat', 'dog'], part('train'), part('valid'), part('test'))
    whole = Plan('p', [Phase(1, 'head', 1e-2, augment=True), Phase(1, 'layer4', 1e-3)], batch=6)
    def step(net, task, plan, phase): fit(net, task, Plan('p', [phase], batch=6), progress=False)
    proof = freeze_proof(pocket(), task, whole, step)
    assert proof.ok and {r['phase'] for r in proof.rows} == {1, 2}


# ---- invariant 1 ----

@pytest.mark.parametrize('name', MAKERS)
def test_frozen_is_bit_identical_and_alone(name):
    make, task = MAKERS[name]
    net = freeze_until(make(), 'head'); below = nn.Sequential(*body(net)); before = state(below)
    opt = everything(net)
    x = getattr(net, 'preprocess', torch.as_tensor)(task().train.inputs)
    for _ in range(3):
        net.train(); net.apply(lambda m: m.train())
        for m in body(net): m.train()
        opt.zero_grad(); F.cross_entropy(net(x), torch.arange(6) % 2).backward(); opt.step()
    assert same(before, state(below)) and all(map(is_frozen, body(net)))
    with torch.no_grad():
        assert torch.equal(below(x), below(x)), 'dropout is off'
        mates = torch.cat([x[:2], x[:4].flip(0)])
        assert torch.allclose(below(x)[:2], below(mates)[:2], atol=1e-5), 'the rest of the batch makes no difference'


@pytest.mark.parametrize('make, task', [*NETS, (text_net, texts)])
def test_gradients_and_momentum_from_before_move_nothing(make, task):
    net = make(); opt = everything(net)
    net.train(); one_batch(net, task()).backward(); opt.step()
    freeze_until(net, 'head'); before = [state(m) for m in body(net)]
    for _ in range(2): opt.step()
    assert all(same(a, state(m)) for a, m in zip(before, body(net))) and all(p.grad is None for m in body(net) for p in m.parameters())


# ---- policies for BatchNorm ----

def norms(m): return [n for n in m.modules() if isinstance(n, nn.BatchNorm2d)]


@pytest.mark.parametrize('policy', ['frozen', 'statistics', 'trainable'])
@pytest.mark.parametrize('statistics', ['adapt', 'keep'])
@pytest.mark.parametrize('make, task, cut', [(pocket, pictures, 'layer4'), (conv_net, tensors, 'body')])
def test_policies_move_what_they_say(policy, statistics, make, task, cut):
    net = freeze_until(make(), cut, statistics, batchnorm=policy); names = list(stages_of(net)); below = names[:names.index(cut)]
    before = state(net); opt = torch.optim.AdamW(learning_rates(net, .05))
    net.eval(); net.train(); one_batch(net, task()).backward(); opt.step()
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    scale = {f'{n}.{k}' for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d) for k in ('weight', 'bias')}
    running = {f'{n}.{k}' for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d) for k in ('running_mean', 'running_var', 'num_batches_tracked')}
    inside = lambda keys: {k for k in keys if any(k.removeprefix('stages.').startswith(b + '.') for b in below)}
    assert inside(moved) == {'frozen': set(), 'statistics': inside(running), 'trainable': inside(running | scale)}[policy]
    assert bool((moved - inside(moved)) & running) == (statistics == 'adapt')
    assert all(is_frozen(stages_of(net)[b]) == (policy == 'frozen') for b in below)
    assert cut_of(net) == (cut if policy == 'frozen' else below[0])
    for m in (m for b in below for m in stages_of(net)[b].modules()): assert m.training == (policy != 'frozen' and isinstance(m, nn.BatchNorm2d))


def test_policies_survive_copies_and_give_way():
    net = freeze_until(conv_net(), 'head', batchnorm='statistics')
    other = copy.deepcopy(net).train(); net.eval()
    assert all(m.training for m in norms(other.stem)) and not other.stem[3].training and not any(m.training for m in norms(net.stem))
    assert not is_frozen(net.stem), 'in inference mode, but not for good'
    assert is_frozen(freeze_until(other, 'head').stem) and not other.stem[1].weight.requires_grad
    assert thaw(freeze_until(other, 'head', batchnorm='trainable')).train().stem[3].training


@pytest.mark.parametrize('policy, words', dict(frozen='frozen', statistics='not still', trainable='partly').items())
def test_policies_are_reported_but_no_contradiction(policy, words):
    def freeze(net): return freeze_until(net, 'head', batchnorm=policy)
    net = freeze(conv_net())
    report = FreezeReport(net, torch.optim.AdamW(learning_rates(net, .1)))
    assert report.problems == [] and [r['state'] for r in report.stages] == [words, words, 'trains']
    assert freeze_proof(conv_net(), tensors(), plan('head'), looped(freeze, trainable)).ok == (policy == 'frozen')


def test_policies_by_wrong_name():
    with pytest.raises(ValueError, match="batchnorm is 'adapt'; it can be 'frozen', 'statistics' or 'trainable'"):
        freeze_until(conv_net(), 'head', batchnorm='adapt')


def test_policies_without_batchnorm_are_all_frozen():
    for policy in ('statistics', 'trainable'): assert all(map(is_frozen, body(freeze_until(text_net(), 'head', batchnorm=policy))))


# ---- the report as data ----

@pytest.mark.parametrize('name', ['pocket', 'conv', 'plain', 'text', 'bert', 'resnet18'])    # PyTorch counts the way back of grouped convolutions wrongly
def test_costs_are_those_of_the_real_backward_pass(name):
    net = MAKERS[name][0]()
    for stage in [None, *stages_of(net)]:
        freeze_until(net, stage)
        if not any(p.requires_grad for p in net.parameters()): continue
        x = example_of(net) if name != 'bert' else torch.zeros(1, 8, dtype=torch.long)
        costs, _ = costs_of(net, x, ())
        net.eval()
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), Counter() as count:
            loss = call(net, x).sum(); forward = count.total; loss.backward()
        assert np.sum(list(costs.values()), 0).tolist() == [forward, count.total - forward]


def test_costs_of_multihead_attention_are_seen_when_all_is_frozen():
    net = named(layer=nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), head=nn.Linear(16, 2)).requires_grad_(False)
    net.head.requires_grad_(True)
    report = FreezeReport(net.eval(), example=torch.zeros(1, 5, 16))
    assert report.stages[0]['forward'] >= 5 * 16 * (3 * 16 + 16 + 2 * 32) and report.stages[0]['backward'] == 0 and torch.backends.mha.get_fastpath_enabled()


def test_report_rows():
    net = freeze_until(pocket(), 'layer4', 'keep').train()
    report = FreezeReport(net, torch.optim.AdamW(learning_rates(net, .1, .5, .01)))
    rows = {r['stage']: r for r in report.stages}
    assert list(rows) == list(stages_of(net)) and json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert rows['layer4']['lr'] == [.05] and rows['head']['lr'] == [.1] and rows['stem']['lr'] == [] and rows['stem']['in_optimizer'] == 'none'
    assert rows['layer4']['statistics'] == 'running, still' and rows['layer4']['mode'] == 'mixed' and rows['head']['dropout'] == 'on'
    assert sum(r['parameters'] for r in rows.values()) == sum(p.numel() for p in net.parameters())
    assert len([r for r in report.rows if r['module']]) == sum(len(list(m.modules())) - 1 for m in stages_of(net).values())
    whole = {r['module']: r for r in report.rows if r['stage'] == 'layer4'}
    assert whole['0.conv1']['state'] == 'trains' and whole['0.bn1']['statistics'] == 'running, still' and whole['0.relu']['state'] == '–'
    assert whole['']['forward'] == sum(r['forward'] for k, r in whole.items() if k and not list(stages_of(net)['layer4'].get_submodule(k).children()))


def test_report_shows_and_escapes():
    net = named(**{'<b>$x$': nn.Linear(3, 4), 'head': nn.Linear(4, 2)})
    report = FreezeReport(net, everything(net))
    assert '<b>' not in report._repr_html_() and '&lt;b&gt;' in report._repr_html_() and '<b>$x$' in str(report) and 'No contradictions.' in str(report)
    net.head.requires_grad_(False)
    report = FreezeReport(net); assert 'Contradictions' in report._repr_html_() and report.problems[0] in str(report) and 'No contradictions' not in str(report)
    fig = report.plot(); fig.canvas.draw()
    assert len(fig.axes) == 2 and all(ax.get_title() and ax.get_xlabel() for ax in fig.axes)
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()][0].startswith(r'<b>\$x\$: trains')
    proof = freeze_proof(net, Record(train=Record(inputs=torch.rand(4, 3), labels=[0, 1, 0, 1])), plan('head'))
    assert '<b>' not in proof._repr_html_() and json.loads(json.dumps(proof.to_dict())) == proof.to_dict() and 'Every promise was kept.' in str(proof)


def test_report_without_an_example():
    class Odd(nn.Module):
        def __init__(self): super().__init__(); self.a, self.b = nn.Bilinear(2, 3, 4), nn.Linear(4, 2)
        def forward(self, x, y): return self.b(self.a(x, y))
    net = Odd().train()
    report = FreezeReport(net)
    assert 'Costs are unknown' in report.note and 'give example=' in str(report) and report.stages[0]['forward'] is None and net.training
    assert len(report.plot().axes) == 1 and escape(report.note) in report._repr_html_()
    for example in [(torch.ones(1, 2), torch.ones(1, 3)), dict(x=torch.ones(1, 2), y=torch.ones(1, 3))]:
        report = FreezeReport(net, example=example); assert report.note == '' and report.stages[1]['forward'] == 8


def test_bad_arguments():
    with pytest.raises(ValueError, match='optimizer is a str'): FreezeReport(conv_net(), 'adam')
    with pytest.raises(ValueError, match='plan with at least one phase, but this dict has none'): freeze_proof(conv_net(), tensors(), {})
    with pytest.raises(ValueError, match='There is no stage'): freeze_proof(conv_net(), tensors(), plan('neck'))


def test_the_proof_leaves_no_trace():
    net = conv_net().train(); before, modes = state(net), [m.training for m in net.modules()]
    torch.manual_seed(3); a = torch.rand(1); torch.manual_seed(3)
    first, second = (freeze_proof(net, tensors(), plan('head'), looped(still, everything)) for _ in range(2))
    assert torch.equal(a, torch.rand(1)) and first.to_dict() == second.to_dict()
    assert same(before, state(net)) and modes == [m.training for m in net.modules()] and not any(m._forward_pre_hooks for m in net.modules())


def test_sides():
    meant = lambda net: sides_of(stages_of(net))[0]
    assert meant(conv_net()) == set() and meant(still(conv_net())) == {'stem', 'body'} and meant(still(plain_net())) == {'stem', 'act', 'body'}
    net = conv_net(); net.body.requires_grad_(False); assert meant(net) == {'body'}
