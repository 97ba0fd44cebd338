"Studies: no run is lost, none counted twice, the test split is read once for each, and verdicts say what the runs say."
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from test_evaluation import NO_TORCH

from transfer_course import studies
from transfer_course.backbones import attach_head, load_backbone
from transfer_course.backstage.plots import colors_of
from transfer_course.evaluation import mean_interval
from transfer_course.studies import Study, StudyError, compare, task_print, weights_print
from transfer_course.tasks import Split, Task
from transfer_course.training import Phase, Plan, feature_extraction, fine_tuning, from_scratch

MAKE = '''
import numpy as np
from transfer_course.tasks import Split, Task
from transfer_course.training import feature_extraction, from_scratch
def make_task(seed=0):
    rng = np.random.default_rng(seed)
    def part(name, n, rng):
        labels = np.arange(n) % 2
        pictures = rng.integers(0, 180, (n, 32, 32, 3), dtype=np.uint8) + (labels * 40).astype(np.uint8)[:, None, None, None]
        return Split(name, pictures, labels, [f'{name}{seed if name != "test" else ""}-{i}' for i in range(n)])
    return Task('dark and light', 'pictures', ['dark', 'light'], part('train', 16, rng), part('valid', 8, rng), part('test', 20, np.random.default_rng(9)))
PLANS = [feature_extraction(2), from_scratch(1)]
'''
names = {}; exec(MAKE, names); make_task, PLANS = names['make_task'], names['PLANS']
GRID = dict(backbone='pocket-resnet', plans=PLANS, budgets=[4, 16], seeds=2, progress=False)
def grid(folder=None, **more): return compare(make_task(), **(GRID | dict(folder=folder) | more))
def same(study): return study.table().drop(columns='seconds')


@pytest.fixture(scope='module')
def whole(tmp_path_factory): return grid(tmp_path_factory.mktemp('whole')/'grid')


def worker(folder, root, extra=''):
    "The same grid in a process of its own."
    code = MAKE + f'from transfer_course.studies import compare\n{extra}\n' \
                  f'compare(make_task(), "pocket-resnet", PLANS, [4, 16], 2, {str(folder)!r}, progress=False)'
    return subprocess.Popen([sys.executable, '-c', code], cwd=root, env=os.environ | dict(PYTHONPATH=str(root)), stderr=subprocess.PIPE, text=True)


def test_the_grid_is_whole_and_tidy(whole):
    t = whole.table(); assert len(t) == 8 and t.groupby(['plan', 'budget', 'seed']).size().eq(1).all() and whole.missing == 0 and whole.test_reads == 8
    assert t.plan.tolist() == ['feature extraction'] * 4 + ['from scratch'] * 4 and t.budget.tolist() == [4, 4, 16, 16] * 2
    assert (t.epochs == [2] * 4 + [1] * 4).all() and t.valid_accuracy.between(0, 1).all() and len(list(whole.folder.glob('run-*.json'))) == 8
    assert whole.hits('from scratch', 16).shape == (2, 20) and np.allclose(whole.hits('from scratch', 16).mean(1), t.accuracy[-2:])


def test_done_is_skipped_and_more_is_added(whole, tmp_path, monkeypatch):
    import shutil; folder = shutil.copytree(whole.folder, tmp_path/'g'); calls, real = [], studies._do
    monkeypatch.setattr(studies, '_do', lambda *a: calls.append(a[0].name) or real(*a))
    assert same(grid(folder)).equals(same(whole)) and not calls
    more = grid(folder, budgets=[4, 8, 16]); old = same(more)[lambda t: t.budget != 8].reset_index(drop=True)
    assert len(calls) == 4 and more.test_reads == 12 and old.equals(same(whole)) and same(Study.load(folder)).equals(same(more))
    assert same(grid(folder)).equals(same(whole)) and same(Study.load(folder)).equals(same(whole)), 'the grid asked for last'
    changed, _ = [replace(PLANS[0], batch=8), PLANS[1]], calls.clear()
    assert len(grid(folder, plans=changed).runs) == 8 and len(calls) == 4, 'another batch size is another plan'


def test_in_memory_is_the_same(whole): s = grid(seeds=[0, 1]); assert same(s).equals(same(whole)) and s.folder is None


def test_kill_9_three_times(whole, tmp_path, root):
    folder = tmp_path/'grid'; counts = []
    for n in (1, 2, 4):
        p = worker(folder, root); began = time.time()
        while len(list(folder.glob('run-*.json'))) < n and p.poll() is None and time.time() - began < 100: time.sleep(.005)
        p.kill(); p.communicate(); counts.append(len(list(folder.glob('run-*.json'))))      # SIGKILL
        loaded = Study.load(folder); assert len(loaded.runs) == counts[-1] and loaded.missing == 8 - counts[-1] and f'{counts[-1]} of 8 runs' in repr(loaded)
    assert counts[0] >= 1 and counts[-1] < 8, 'it was interrupted'
    end = grid(folder); assert same(end).equals(same(whole)) and 8 <= end.test_reads <= 11 and not list(folder.glob('*.claim'))


def test_two_at_once(whole, tmp_path, root):
    folder = tmp_path/'grid'; both = [worker(folder, root) for _ in range(2)]
    errors = [p.communicate(timeout=170)[1] for p in both]; assert [p.returncode for p in both] == [0, 0], errors
    s = Study.load(folder); assert same(s).equals(same(whole)) and s.test_reads == 8
    assert len(list(folder.glob('run-*'))) == 8 and not list(folder.glob('*.claim'))


def test_a_killed_write_is_no_run(whole, tmp_path):
    import shutil; folder = shutil.copytree(whole.folder, tmp_path/'g'); one, two, *_ = sorted(folder.glob('run-*.json'))
    one.write_text(one.read_text()[:200]); two.unlink(); (folder/f'.{two.name}.ab.part').write_text('{'); os.utime(folder/f'.{two.name}.ab.part', (1, 1))
    assert Study.load(folder).missing == 2 and same(grid(folder)).equals(same(whole)) and not list(folder.glob('.*'))


def test_claims(tmp_path):
    path = tmp_path/'x.claim'; a, b = studies._Claim(path), studies._Claim(path)
    assert a.take() and not b.take(); a.free(); assert not path.exists() and b.take(); b.free()
    path.write_text('1 elsewhere 0'); assert not a.take(), 'another machine may be at work'
    os.utime(path, (1, 1)); assert a.take(), 'silent for too long'
    path.write_text('1 other 0'); a.free(); assert path.exists(), "never frees another's claim"
    path.unlink(); taken = []; claims = [studies._Claim(path) for _ in range(20)]
    threads = [threading.Thread(target=lambda c=c: taken.append(c.take())) for c in claims]
    [t.start() for t in threads]; [t.join() for t in threads]; assert sum(taken) == 1
    [c.free() for c in claims]


def test_claims_show_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(studies._Claim, 'beat', .02); c = studies._Claim(tmp_path/'x.claim'); c.take()
    os.utime(c.path, (1, 1)); time.sleep(.3); assert time.time() - c.path.stat().st_mtime < 60; c.free()


def test_training_never_sees_the_test_split(tmp_path, monkeypatch):
    import transfer_course.training as training
    task, reads, seen, real = make_task(), [], [], training.fit
    secret = task.test.inputs
    def opened(): reads.append(1); return secret
    task.test = Split('test', lambda: opened(), task.test.labels, task.test.ids, classes=task.classes)
    def watched(model, task, *a, **k): seen.append(len(task.test)); h = real(model, task, *a, **k); assert not reads or len(reads) == 1; return h
    monkeypatch.setattr(training, 'fit', watched); monkeypatch.setattr(studies, 'task_print', lambda t: 'x')
    calls, measure = [], studies.evaluate
    monkeypatch.setattr(studies, 'evaluate', lambda m, s: calls.append(s.name) or measure(m, s))
    s = compare(task, 'pocket-resnet', PLANS, [4], 2, tmp_path/'g', progress=False)
    assert seen == [0] * 4 and calls == ['test'] * 4 and s.test_reads == 4


def test_reads_that_died_are_counted(tmp_path, monkeypatch):
    real = studies.write_json
    def dies(path, record):
        if path.name.startswith('run-'): raise OSError('disk full')
        return real(path, record)
    monkeypatch.setattr(studies, 'write_json', dies)
    with pytest.raises(OSError): grid(tmp_path, budgets=[4], seeds=2)
    monkeypatch.setattr(studies, 'write_json', real); s = grid(tmp_path, budgets=[4], seeds=2)
    assert s.test_reads == 5 and len(s.runs) == 4 and not list(tmp_path.glob('*.claim'))


def test_an_interrupt_gives_the_study_so_far(tmp_path, monkeypatch, capsys):
    real, calls = studies._trained, []
    def go(*a):
        calls.append(1)
        if len(calls) == 4: raise KeyboardInterrupt
        return real(*a)
    monkeypatch.setattr(studies, '_trained', go); s = grid(tmp_path)
    assert 'Interrupted: 3 of 8 runs are finished' in capsys.readouterr().out
    assert len(s.runs) == 3 and s.missing == 5 and '3 of 8 runs' in repr(s) and s._repr_html_() and not list(tmp_path.glob('*.claim'))


def test_a_task_for_each_seed(tmp_path):
    s = compare(None, load_backbone('pocket-resnet', verbose=False), PLANS, [4], 2, tmp_path, False, make_task)
    assert len(s.runs) == 4 and len({r['key']['task'] for r in s.runs}) == 2 and len({r['test'] for r in s.runs}) == 1
    assert s.hits('from scratch', 4).shape == (2, 20)
    assert same(Study.load(tmp_path)).equals(same(s))


def test_equal_seconds_scales_epochs_and_survives(tmp_path):
    "Trials are real, but a noisy machine may find either plan the slower one: what follows from a trial is tested with written seconds."
    p = Plan('two phases', [Phase(1, -1, augment=False), Phase(2, 'layer4')]); plans = [feature_extraction(1), p]
    def run(**k):
        s = compare(make_task(), 'pocket-resnet', plans, [16], 1, tmp_path, False, equal='seconds', **k)
        return s, s.table().set_index('plan').epochs
    _, e = run()
    trials = [json.loads(f.read_text()) for f in tmp_path.glob('trial-*.json')]; assert len(trials) == 2
    bills = {t['plan']: t['fixed'] + sum(c * x for c, x in zip((1, 2), t['epochs'])) for t in trials}; slowest = max(bills, key=bills.get)
    assert all(t['fixed'] >= 0 and min(t['epochs']) > 0 for t in trials)
    assert e[slowest] == {'feature extraction': 1, 'two phases': 3}[slowest], 'the slowest plan stays as it is'
    for f in tmp_path.glob('trial-*.json'):
        t = json.loads(f.read_text()); f.write_text(json.dumps(t | dict(fixed=.1, epochs=[.1, .2][:len(t['epochs'])])))
    trials = {f: f.read_text() for f in tmp_path.glob('trial-*.json')}
    s, e = run(seconds=1.1)
    assert (e['feature extraction'], e['two phases']) == (10, 6) and s.asked['seconds'] == 1.1
    again, _ = run(seconds=1.1)
    assert again.table().equals(s.table()) and trials == {f: f.read_text() for f in tmp_path.glob('trial-*.json')}, 'a trial is made once'
    _, e = run()
    assert (e['feature extraction'], e['two phases']) == (5, 3), 'the slowest plan stays as it is'
    with pytest.raises(StudyError, match='too few'): run(seconds=.3)


BAD = {
    'no plan': (dict(plans=[]), 'at least one plan'), 'no seed': (dict(seeds=0), 'one seed'),
    'twins': (dict(plans=[from_scratch(1), from_scratch(2)]), 'Two plans are called'),
    'too many labels': (dict(budgets=[99]), 'train has 16 labels'), 'too few': (dict(budgets=[1]), 'budget 1 does not fit'),
    'half a label': (dict(budgets=[4.5]), 'budget 4.5'),
    'equal what': (dict(equal='epoch'), "choose 'epochs' or 'seconds'"), 'seconds alone': (dict(seconds=3), "goes with equal='seconds'"),
    'no time': (dict(equal='seconds', seconds=1e-6), 'seconds are too few'),
}
@pytest.mark.parametrize('what', BAD)
def test_bad_grids_are_one_sentence(what, tmp_path):
    with pytest.raises(StudyError, match=BAD[what][1]) as e: grid(tmp_path, **BAD[what][0])
    assert str(e.value).endswith('.') and '\n' not in str(e.value) and not list(tmp_path.glob('run-*'))


def test_a_test_split_without_a_class(tmp_path):
    task = make_task(); lame = replace(task, test=task.test.subset(task.test.labels == 0))
    with pytest.raises(StudyError, match='no example of light'): compare(lame, 'pocket-resnet', PLANS, [4], 1, tmp_path, False)


def test_a_plan_that_diverges_keeps_the_rest(tmp_path):
    wild = Plan('wild', [Phase(3, None, 1e18)], batch=4, clip=1e30)
    with pytest.raises(StudyError, match='lower its learning rate'): grid(tmp_path, plans=[PLANS[0], wild], budgets=[16], seeds=1)
    assert len(Study.load(tmp_path).runs) == 1 and not list(tmp_path.glob('*.claim'))


def made(gaps, seeds=5, noise=.01, names=('a', 'b'), examples=50):
    "A study whose plans differ by `gaps` {budget: lead of the first}."
    rng, runs = np.random.default_rng(0), []
    for n, gap in gaps.items():
        for s in range(seeds):
            base = .6 + rng.normal(0, .05)
            for i, name in enumerate(names):
                accuracy = base + (gap if i == 0 else 0) + rng.normal(0, noise); hits = rng.random(examples) < accuracy
                runs.append(dict(plan=name, how=name, budget=n, seed=s, accuracy=accuracy, macro_f1=accuracy, ece=.1, valid_accuracy=.5,
                                 epochs=1, seconds=1., predictions=hits.astype(int).tolist(), labels=[1] * examples, test='t'))
    asked = dict(task='<i>t', backbone='n$et', plans={n: n for n in names}, budgets=list(gaps), seeds=list(range(seeds)), equal='epochs', seconds=None)
    return Study(runs, asked, len(runs))


def test_verdicts_are_paired_over_seeds():
    s = made({20: .1, 200: 0.}); v = s.verdict('a', 'b', 20); t = s.table().pivot(index=['budget', 'seed'], columns='plan', values='accuracy')
    assert np.allclose((v.value, v.low, v.high), mean_interval((t.a - t.b)[20])) and v.detectable and 'a is ahead of b' in v and v.seeds == 5
    assert 'a is ahead' not in s.verdict('b', 'a', 20) and 'b is behind a' in s.verdict('b', 'a', 20)
    w = s.verdict('a', 'b', 200); assert 'no detectable difference' in w and not w.detectable and w.low < 0 < w.high and repr(w) == str(w)
    both = s.verdict('a', 'b', 20, over='seeds and examples'); assert np.isclose(both.value, s.hits('a', 20).mean() - s.hits('b', 20).mean())


def test_both_doubts_are_never_less_than_one():
    for seed in range(20):
        h = np.random.default_rng(seed).normal(.1, 1, (4, 30)); _, lo, hi = studies._over_both(h)
        _, low, high = mean_interval(h.mean(1)); assert lo <= low and hi >= high


def test_examples_that_belong_together_count_as_one():
    "Four copies of every example say no more than one does: the interval of groups is that of the single examples, and wider than without groups."
    h = np.random.default_rng(1).normal(.1, 1, (4, 30)); copies = np.repeat(h, 4, 1)
    alone, grouped, blind = studies._over_both(h), studies._over_both(copies, np.repeat(np.arange(30), 4)), studies._over_both(copies)
    assert np.allclose(alone, grouped) and blind[2] - blind[1] < grouped[2] - grouped[1]
    assert np.allclose(studies._over_both(h, np.arange(30)), alone)


def test_groups_of_the_test_split_reach_the_verdict(tmp_path):
    def grouped(): task = make_task(); task.test.groups = [i // 4 for i in range(20)]; return task
    s = compare(grouped(), 'pocket-resnet', PLANS, [4], 2, tmp_path/'g', False); a, b = (p.name for p in PLANS)
    assert s.runs[0]['groups'] == [i // 4 for i in range(20)] and grid(budgets=[4]).runs[0]['groups'] is None
    back = Study.load(s.save(tmp_path/'s.json')); both, again = (x.verdict(a, b, 4, over='seeds and examples') for x in (s, back))
    assert back.runs[0]['groups'] == s.runs[0]['groups'] and (both.low, both.high) == (again.low, again.high)
    gap = (s.hits(a, 4).astype(float) - s.hits(b, 4)); assert np.allclose(both.low, max(-1, studies._over_both(gap, s.runs[0]['groups'])[1]))


def test_a_plan_that_can_not_be_meant_stops_the_grid_before_it_begins(tmp_path):
    with pytest.raises(StudyError, match='lr is 0'): grid(tmp_path, plans=[*PLANS, replace(feature_extraction(1, lr=0), name='odd')])
    assert not list(tmp_path.glob('run-*'))


def test_no_interval_leaves_what_can_be():
    "Two seeds make intervals of Student's t that would reach below nothing and above everything."
    s = made({20: .1})
    for r in s.runs: r['accuracy'] = .1 if r['seed'] % 2 else .9
    t = s.summary(); assert (t.low >= 0).all() and (t.high <= 1).all()
    v = studies._say('a', 'b', 20, 'accuracy', -.1, -1.4, 1.2, 2, 'seeds'); assert (v.low, v.high) == (-1, 1) and '100.0 points could hide' in v


def test_less_calibration_error_is_no_defeat():
    s = made({20: .1})
    for r in s.runs: r['ece'] = .1 + (.05 + 1e-4 * r['seed']) * (r['plan'] == 'a')
    assert 'a has 5.0 points of calibration error more than b' in s.verdict('a', 'b', 20, 'ece') and 'b has 5.0' in s.verdict('b', 'a', 20, 'ece')
    assert 'less than a' in s.verdict('b', 'a', 20, 'ece')
    with pytest.raises(StudyError, match='accuracy or macro_f1'): made({20: .1, 80: -.1}).crossover('a', 'b', 'ece')


def test_crossover():
    assert made({20: .1, 80: -.1}).crossover('a', 'b').at and made({20: .1, 80: -.1}).crossover('a', 'b').between == [(20, 80)]
    s = made({20: .1, 50: .05, 200: -.1}); c = s.crossover('a', 'b'); assert 50 < c.at[0] < 200 and 'a is detectably ahead up to' in c and 'b from 200' in c
    assert 'do not cross' in made({20: .1, 80: .05}).crossover('a', 'b') and 'a is ahead' in made({20: .1, 80: .05}).crossover('a', 'b')
    noisy = made({20: .01, 80: -.01}, noise=.2).crossover('a', 'b'); assert 'open' in noisy or 'do not cross' in noisy
    assert studies._crossings([10, 100], [.1, -.1]) == [32] and studies._crossings([10, 20, 40], [.1, 0, -.1]) == [20]


ASK = {'plan': (lambda s: s.verdict('a', 'c', 20), "no plan 'c'.*a, b"), 'budget': (lambda s: s.verdict('a', 'b', 30), "no budget '30'.*20, 80"),
       'metric': (lambda s: s.plot('loss'), 'choose one of accuracy'), 'over': (lambda s: s.verdict('a', 'b', 20, over='time'), "choose 'seeds'"),
       'one seed': (lambda s: made({20: .1}, seeds=1).verdict('a', 'b', 20), 'needs two or more'),
       'point': (lambda s: made({20: .1}).crossover('a', 'b'), 'not a curve')}
@pytest.mark.parametrize('what', ASK)
def test_questions_a_study_can_not_answer(what):
    with pytest.raises(StudyError, match=ASK[what][1]): ASK[what][0](made({20: .1, 80: 0.}))


def test_a_study_shows_itself(monkeypatch):
    hostile = '<script>$x$\n'; s = made({20: .1, 80: 0.}, names=(hostile, 'b')); html = s._repr_html_()
    assert '<script>' not in html and '<i>' not in html and '&lt;script&gt;' in html and '$x$\n' not in str(s)
    shown = []; monkeypatch.setattr('IPython.display.display', lambda x, **k: shown.append(x)); s._ipython_display_()
    assert shown[0]['text/html'] == html and shown[1].alt == s.alt
    s.plot('macro_f1').canvas.draw(); t = s.summary(); assert len(t) == 4 and (t.low < t['mean']).all()
    one = made({20: .1}, seeds=1); assert 'one seed' in str(one) and 'one seed' in one.plot().axes[0].get_title() and np.isnan(one.summary().low).all()
    five = ['from scratch', 'feature extraction', 'fine-tuning', 'gradual unfreezing', 'frozen with augmentation', 'x', 'y']
    assert len(set(colors_of(five).values())) == 7 and colors_of(five)['from scratch'] == '#D55E00'


def test_save_and_load_without_torch(whole, tmp_path, root):
    path = whole.save(tmp_path/'study.json'); back = Study.load(path)
    assert back.table().equals(whole.table()) and back.test_reads == 8 and (back.hits('from scratch', 4) == whole.hits('from scratch', 4)).all()
    code = NO_TORCH + 'from transfer_course.studies import Study\n' \
           f'for p in {[str(path), str(whole.folder)]!r}: s = Study.load(p); print(s.verdict(*s.plans, 4)); s._repr_html_()'
    done = subprocess.run([sys.executable, '-c', code], cwd=root, env=os.environ | dict(PYTHONPATH=str(root)), capture_output=True, text=True)
    assert done.stdout.count('With 4 labels') == 2, done.stderr
    for p, words in ((tmp_path/'gone', 'check the path'), (tmp_path, 'holds no study')):
        with pytest.raises(StudyError, match=words): Study.load(p)
    (tmp_path/'x.json').write_text(json.dumps(dict(format='other')))
    with pytest.raises(StudyError, match='no study of this course'): Study.load(tmp_path/'x.json')


def test_a_slower_second_process_does_not_shrink_the_grid(whole, tmp_path):
    import shutil; folder = shutil.copytree(whole.folder, tmp_path/'g'); grid_ = studies._read(folder/'grid.json', studies.STUDY)
    studies._keep_grid(folder, grid_ | dict(names=grid_['names'][:4])); assert len(Study.load(folder).runs) == 8
    studies._keep_grid(folder, grid_ | dict(names=['run-1-1-new'])); assert len(Study.load(folder).runs) == 0


def test_fingerprints_see_labels_ids_and_pictures():
    a = make_task(); prints = {task_print(a)}
    for change in ('labels', 'ids', 'inputs'):
        b = make_task(); v = getattr(b.test, change)
        if change == 'labels': v[3] = 1 - v[3]
        elif change == 'ids': v[3] = 'other'
        else: v[0, 0, 0, 0] += 1
        prints.add(task_print(b))
    soft = make_task(); soft.train = replace(soft.train, shares=np.full((16, 2), .5)); prints.add(task_print(soft))
    softer = make_task(); softer.train = replace(soft.train, shares=np.tile([.9, .1], (16, 1))); prints.add(task_print(softer))
    assert len(prints) == 6 and task_print(make_task()) in prints
    texts = Task('t', 'texts', ['a', 'b'], *(Split(n, ['x', 'y'], [0, 1], ['0', '1']) for n in ('train', 'valid', 'test')))
    assert task_print(texts) not in prints


def test_fingerprints_see_how_texts_are_read():
    b = load_backbone('pocket-resnet', verbose=False)
    def read(length, pool): return replace(b, preprocess=SimpleNamespace(settings=dict(length=length)), pool=lambda: pool)
    assert len({weights_print(x) for x in (b, read(32, 'mean'), read(64, 'mean'), read(32, 'cls'))}) == 4
    assert len({weights_print(load_backbone('pocket-resnet', centre=c, verbose=False)) for c in (None, 1., .9, .8)}) == 3


def test_time_left_knows_what_is_done_and_what_it_cost(tmp_path, monkeypatch):
    "More plans join a finished grid: only their runs are still to do, and what earlier seeds cost is not forgotten."
    grid(tmp_path, budgets=[4]); calls, real = [], studies._left
    monkeypatch.setattr(studies, '_left', lambda todo, done: calls.append((len(todo), len(done))) or real(todo, done))
    grid(tmp_path, budgets=[4], plans=[*PLANS, feature_extraction(1) if PLANS[0].name != 'feature extraction' else replace(feature_extraction(1), name='more')])
    assert calls == [(2, 2), (1, 5)]


def test_time_left_and_progress(capsys, tmp_path):
    job = studies._Job(from_scratch(10), 40, 0, {}); done = [dict(plan='from scratch', budget=20, epochs=10, seconds=3.)]
    assert studies._left([job, job], done) == 12 and studies._left([job], []) is None
    assert studies._left([job], done + [dict(done[0], budget=40, seconds=5.)]) == 5
    grid(tmp_path, budgets=[4], seeds=1, progress=True); shown = capsys.readouterr().err
    assert '2/2 runs' in shown and 'left' in shown and isinstance(Study.load(tmp_path).table(), pd.DataFrame)


# ---------------------------------------------------------------- what readers of the code found

def test_a_claim_that_ctrl_c_left_behind_is_void_at_once(tmp_path):
    left, mine = studies._Claim(tmp_path/'x.claim'), studies._Claim(tmp_path/'x.claim')
    assert left.take() and not mine.void() and not mine.take(); left.live.discard(left.text)       # interrupted before the file was taken away
    assert mine.void() and mine.take(); mine.free(); left.over.set(); assert not list(tmp_path.iterdir())


def test_ctrl_c_between_claim_and_run_frees_the_claim(tmp_path, monkeypatch):
    import tqdm.auto; real, calls = tqdm.auto.tqdm.set_postfix_str, []
    def once(self, *a, **k):
        calls.append(1)
        if len(calls) == 2: raise KeyboardInterrupt
        return real(self, *a, **k)
    monkeypatch.setattr(studies.tqdm, 'set_postfix_str', once); s = grid(tmp_path)
    assert len(s.runs) == 1 and not list(tmp_path.glob('*.claim')); assert not grid(tmp_path).missing


def test_validation_accuracy_is_that_of_the_weights_that_are_kept(tmp_path):
    from transfer_course.evaluation import evaluate
    from transfer_course.training import fit
    plan, task = Plan('p', [Phase(8, None, .1)], patience=2), make_task()
    r = compare(task, 'pocket-resnet', [plan], [16], 1, tmp_path, progress=False).runs[0]
    model = attach_head(load_backbone('pocket-resnet', verbose=False), task, seed=0); history = fit(model, task.budget(16, 0), plan, seed=0, progress=False)
    assert history.kept < len(history.rows) == r['epochs'], 'the fit went back, so that the question is asked'
    assert r['valid_accuracy'] == pytest.approx(evaluate(model, task.valid).accuracy) == history.rows[history.kept - 1]['valid_accuracy']


def test_one_group_is_no_sample_of_groups():
    s = made({20: .1})
    for r in s.runs: r['groups'] = [0] * 50
    with pytest.raises(StudyError, match='one group'): s.verdict('a', 'b', 20, over='seeds and examples')


def test_equal_gaps_are_not_certain():
    s = made({20: .1}, seeds=2)
    for r in s.runs: r['accuracy'] = .75 if r['plan'] == 'a' else .5
    v = s.verdict('a', 'b', 20); assert not v.detectable and '+25.0 points of accuracy in each of the 2 seeds' in v and v.value == .25
    for r in s.runs: r['accuracy'] = .5
    v = s.verdict('a', 'b', 20); assert 'no detectable difference' in v and 'no interval can be made' in v and not v.detectable and '-0.0' not in v


def test_a_lead_that_turns_twice_is_told_so():
    c = made({10: .2, 20: -.2, 40: .2}).crossover('a', 'b')
    assert 'turns 2 times: a is detectably ahead at 10, b is detectably ahead at 20, a is detectably ahead at 40' in c and len(c.between) == 2


def test_mistakes_in_a_grid_are_one_sentence(tmp_path):
    for more, match in ((dict(plans=feature_extraction), 'with their brackets'), (dict(plans=[feature_extraction]), 'with their brackets'),
                        (dict(folder=tmp_path/'file'), 'cannot be a folder'), (dict(plans=[PLANS[0], fine_tuning(kind='texts')]), "kind='texts'"),
                        (dict(backbone=attach_head(load_backbone('pocket-resnet', verbose=False), ['a', 'b'])), 'not StagedModel')):
        (tmp_path/'file').write_text('x')
        with pytest.raises(StudyError, match=match): grid(**more)
    s = grid(plans=PLANS[0], budgets=4, seeds=np.int64(1)); assert len(s.runs) == 1 and not s.missing
    assert not grid(plans=[PLANS[0]], budgets=[4], seeds=[0, 0, 1]).missing
    seen = []; compare(None, **GRID | dict(plans=[PLANS[0]], budgets=[4], seeds=iter([3, 5])), make_task=lambda s: seen.append(s) or make_task(s))
    assert seen == [3, 5]


def test_a_plan_that_diverges_tells_what_became_of_the_others(tmp_path):
    bad = Plan('bad', [Phase(2, None, 1e30)]); more = dict(plans=[PLANS[0], bad], budgets=[4], seeds=1)
    with pytest.raises(StudyError, match='Finished runs are lost; give folder='): grid(**more)
    with pytest.raises(StudyError, match='Finished runs are kept'): grid(tmp_path, **more)


def test_equal_seconds_price_every_phase_of_a_plan_with_patience(tmp_path, monkeypatch):
    plan = Plan('p', [Phase(4, -1, augment=False), Phase(4, None)], patience=1); asked = []; real = studies._trained
    monkeypatch.setattr(studies, '_trained', lambda job, *a: asked.append(job.plan) or real(job, *a))
    compare(make_task(), 'pocket-resnet', [plan, PLANS[0]], [16], 1, tmp_path, progress=False, equal='seconds')
    assert [p.patience for p in asked if p.name == 'p'] == [None, None, 1], 'two trials without patience, one run with it'
