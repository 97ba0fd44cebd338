"What the course claims about its weights and its experiments is what the files say."
import hashlib
import json
import os
from types import SimpleNamespace

import pandas as pd
import pytest

from transfer_course.backstage import measurements
from transfer_course.backstage.assets import asset_path, remove_parts, replace_file, results_path, write_json
from transfer_course.backstage.measurements import AFTER, ALL, BEFORE, BRIEF, BUDGETS, COUNTED, CUTS, FEW, HELD, LESS, MORE, ONE, OURS
from transfer_course.backstage.measurements import EPOCHS, SOFT, WRITTEN
from transfer_course.backstage.measurements import budget_plans, elsewhere_plan, epochs_plan, recipe_plans, recipe_told
from transfer_course.backstage.measurements import estimate_plans, load_results, photo_plans, trial_plans, WHOLE
from transfer_course.backstage.pretraining import CATS_AND_DOGS, model_card
from transfer_course.evaluation import mean_interval
from transfer_course.product_reviews import review_plans
from transfer_course.studies import Study
from transfer_course.training import feature_extraction, fine_tuning, from_scratch


@pytest.fixture(scope='module')
def card(): return json.loads(asset_path('pocket_resnet.json').read_text(encoding='utf-8'))


def test_weights_are_those_of_the_card(card):
    path = asset_path('pocket_resnet.safetensors')
    assert hashlib.sha256(path.read_bytes()).hexdigest() == card['sha256'] and path.stat().st_size < 12e6
    assert asset_path('pocket_resnet.md').read_text(encoding='utf-8') == model_card(card)


def test_cats_and_dogs_were_held_out(card):
    assert len(CATS_AND_DOGS) == 9 and set(card['held_out']) == CATS_AND_DOGS and not CATS_AND_DOGS & set(card['wnids'])
    assert len(card['wnids']) == len(card['names']) == 191


def test_pretraining_reached_its_bar(card):
    assert card['top1'] >= .45 and [r['epoch'] for r in card['log']] == list(range(1, len(card['log']) + 1))


def runs(name, plans, labels=200):
    results = load_results(name); rows = pd.DataFrame(results['rows'])
    assert results['command'].startswith('python -m transfer_course') and results['machine']['cores']
    assert set(rows.how) == {repr(p) for p in plans}, 'the recorded plans are not those of the code: make the file anew'
    wide = rows.pivot(index='seed', columns='plan', values='accuracy')
    assert len(wide) >= 5 and wide.notna().all().all() and (rows.labels == labels).all()
    return wide


def test_drawn_pictures_hold_their_tuning():
    wide = runs('three_ways_drawn', [from_scratch(), feature_extraction(), fine_tuning()]); mean = wide.mean()
    assert .6 <= mean['from scratch'] <= .8 and mean['feature extraction'] > mean['from scratch']
    assert mean['fine-tuning'] - mean['from scratch'] >= .1


def test_photographs_gain_from_transfer():
    wide = runs('three_ways_photos', photo_plans()); mean = wide.mean()
    assert mean['feature extraction'] >= .77 and mean['fine-tuning'] >= .83
    gain, low, _ = mean_interval(wide['fine-tuning'] - wide['from scratch']); assert gain > .1 and low > .05


def test_the_share_that_is_looked_at_was_chosen_without_the_test():
    "The trials of lesson 09: every network saw most right at the share that the photographs are measured with, and none read the test split."
    results = load_results('photo_trials'); rows = pd.DataFrame(results['rows'])
    assert set(rows.plan) == {WHOLE, *(p.name for p in trial_plans())} and rows.groupby('plan').seed.nunique().eq(3).all() and set(rows.test) == {880}
    assert {r.how for r in rows.itertuples()} == {repr(p) for p in trial_plans()}
    looked = pd.DataFrame(rows.by_share.dropna().tolist()); assert (looked.idxmax(axis=1) == str(measurements.SEEN)).all()
    assert mean_interval(looked[str(measurements.SEEN)] - looked['1.0'])[1] > 0
    assert {r.get('looks') for r in load_results('three_ways_photos')['rows']} == {rows[rows.plan != WHOLE].looks.iloc[0]}


def test_more_photographs_gain_more():
    "What the section of lesson 09 on time to spare rests on."
    many = runs('more_photos', photo_plans()[1:], 500); study = Study.load(results_path('cats_and_dogs_study.json')).table()
    assert mean_interval(many['fine-tuning'] - many['feature extraction'])[1] > 0
    for plan in many:
        then = study[(study.plan == plan) & (study.budget == 500)].set_index('seed').accuracy; assert mean_interval(many[plan] - then)[1] > 0, plan


def test_rated_sentences_were_asked_of_every_way_on_every_split():
    "What lesson 10 says of real customers: five splits each, the plans of the code, and gaps that can be told from luck."
    rows = pd.DataFrame(load_results('amazon_reviews')['rows'])
    named = {p.name: repr(p) for p in review_plans()}
    asked = {ONE, SOFT, MORE, BEFORE, AFTER, COUNTED, WRITTEN, BRIEF, 'word counting', *named}
    assert set(rows.what) == asked
    for what, t in rows.groupby('what'): assert sorted(t.seed) == list(range(5)), what
    for name, how in (named | {SOFT: named['fine-tuning'].replace('fine-tuning', SOFT, 1),
                               MORE: named['fine-tuning'].replace('fine-tuning', MORE, 1), BEFORE: repr(elsewhere_plan()),
                               AFTER: named['fine-tuning'].replace('fine-tuning', AFTER, 1), WRITTEN: named['fine-tuning'],
                               BRIEF: repr(epochs_plan())}).items():
        assert set(rows[rows.what == name].how) == {how}, name
    for r in rows[rows.steps.notna()].itertuples():
        assert sum(r.steps['of']) == r.test and sum(r.steps['right']) == pytest.approx(r.accuracy * r.test, abs=.5), r.what
    wide = rows.pivot(index='seed', columns='what', values='accuracy')
    for better, worse in ((WRITTEN, COUNTED), ('fine-tuning', 'feature extraction'), ('fine-tuning', 'from scratch'), (ONE, 'fine-tuning'),
                          ('fine-tuning', BEFORE), (BEFORE, 'feature extraction')):
        assert mean_interval(wide[better] - wide[worse])[1] > 0, (better, worse)
    for name in (SOFT, MORE, AFTER, 'gradual unfreezing'): _, low, high = mean_interval(wide[name] - wide['fine-tuning']); assert low < 0 < high, name
    assert (wide['last layers'] - wide['feature extraction']).mean() > .5 * (wide['fine-tuning'] - wide['feature extraction']).mean()
    for better, worse in (('last layers', 'feature extraction'), ('fine-tuning', 'last layers')): assert mean_interval(wide[better] - wide[worse])[1] > 0


def test_epochs_of_the_written_reviews_were_chosen_elsewhere():
    "Sentences from elsewhere chose them, and the product sentences, which had no say, agree that fewer are better."
    rows = pd.DataFrame(load_results('written_epochs')['rows']); n = {w: t for w, t in rows.groupby('what')}
    for w in (HELD, OURS): assert sorted(zip(n[w].epochs, n[w].seed)) == [(k, s) for k in EPOCHS for s in range(5)], w
    for r in rows.itertuples(): assert r.how == repr(epochs_plan(r.epochs)) and r.asked == dict(films=1000, tweets=1000, editorials=1000)
    assert set(n) == {HELD, OURS} and set(n[OURS].train) == {1350} and n[HELD].own.notna().all()
    there = n[OURS].assign(there=n[OURS][['films', 'tweets', 'editorials']].mean(axis=1)).pivot(index='seed', columns='epochs', values='there')
    assert there.mean().idxmax() == FEW
    def gap(what, a, b, of):    # interval of a epochs less b, as the table of the lesson has it
        t = n[what].assign(there=n[what][['films', 'tweets', 'editorials']].mean(axis=1)).pivot(index='seed', columns='epochs', values=of)
        return mean_interval(t[a] - t[b])
    assert all(gap(HELD, b, a, 'own')[1] > 0 for a, b in zip(EPOCHS, EPOCHS[1:])), 'more epochs are better all the way'
    assert gap(HELD, 6, FEW, 'there')[2] < 0, 'the very same networks are worse elsewhere'
    for k in (1, 3): _, low, high = gap(OURS, k, FEW, 'there'); assert low < 0 < high, k
    for k in (4, 6): assert gap(OURS, k, FEW, 'there')[2] < 0, k
    wide = pd.DataFrame(load_results('amazon_reviews')['rows']).pivot(index='seed', columns='what', values='accuracy')
    assert wide[BRIEF].mean() >= .8 and mean_interval(wide[BRIEF] - wide[WRITTEN])[1] > 0


def test_lesson_10_shows_what_the_files_say(root):
    "Stored outputs against results: means of the two numbers of epochs, every row of the table, and the gains in the text of the figure."
    cells = json.loads((root/'nbs'/'10_product_reviews.ipynb').read_text(encoding='utf-8'))['cells']
    shown = json.dumps([c['outputs'] for c in cells if c['cell_type'] == 'code'], ensure_ascii=False)
    def say(v): return '{:.1%} ({:.1%} to {:.1%})'.format(*mean_interval(v))
    wide = pd.DataFrame(load_results('amazon_reviews')['rows']).pivot(index='seed', columns='what', values='accuracy')
    for n, what in ((FEW, BRIEF), (review_plans()[-1].epochs, WRITTEN)): assert f'product sentences, {n} epochs: {say(wide[what])}' in shown
    for what in wide: assert say(wide[what]) in shown, what
    wide = pd.DataFrame(load_results('amazon_recipes')['rows']).pivot(index='seed', columns='what', values='accuracy')
    for what in wide.columns.drop('fine-tuning'): assert f"{what} {100 * (wide[what] - wide['fine-tuning']).mean():+.1f}" in shown, what


def test_no_recipe_is_ahead_of_fine_tuning():
    "What lesson 10 says of eight recipes and of networks with fewer layers; they were judged by valid."
    rows = pd.DataFrame(load_results('amazon_recipes')['rows']); recipes = recipe_plans(); wide = rows.pivot(index='seed', columns='what', values='accuracy')
    assert set(wide) == {*recipes, ALL} and len(wide) == 5 and wide.notna().all().all() and LESS == {4: [*recipes][-2], 2: [*recipes][-1]}
    for name, recipe in recipes.items(): assert set(rows[rows.what == name].how) == {recipe_told(*recipe)}, name
    gaps = {n: mean_interval(wide[n] - wide['fine-tuning']) for n in wide if n != 'fine-tuning'}
    assert all(low <= 0 for _, low, _ in gaps.values()), gaps
    assert {n for n, (_, _, high) in gaps.items() if high < 0} == {'half the epochs', 'twice the epochs', 'half the rate', *LESS.values()}, gaps
    assert min(gaps, key=lambda n: gaps[n][0]) == LESS[2]
    assert wide[LESS[2]].mean() < wide[LESS[4]].mean() < wide['fine-tuning'].mean() and mean_interval(wide['fine-tuning'] - wide[LESS[2]])[1] > 0


def test_recipes_that_were_interrupted_go_on(tmp_path, monkeypatch):
    "Ctrl-C in the middle, then once more: no run is made twice, and the answers of the eight are averaged."
    monkeypatch.setattr(measurements, 'results_path', lambda name, new=False: tmp_path/name)
    part = SimpleNamespace(labels=[0, 1, 2]); task = SimpleNamespace(train=[0] * 9, valid=part, classes=['a', 'b', 'c'])
    monkeypatch.setattr('transfer_course.tasks.load_reviews', lambda *a, **k: task)
    made = []
    def run(task, seed, name, *recipe):
        if len(made) == 13: made.append(None); raise KeyboardInterrupt
        made.append((name, seed)); answer = [[.9, .1, 0], [.4, .6, 0], [1, 0, 0] if name in LESS.values() else [.45, 0, .55]]
        return measurements._judged(name, seed, task, [0, 1, 0], 1.) | dict(how=recipe_told(*recipe), shares=answer)
    monkeypatch.setattr(measurements, '_recipe_run', run)
    with pytest.raises(KeyboardInterrupt): measurements.measure_recipes(seeds=2, folder=tmp_path/'runs')
    assert len(load_results('amazon_recipes')['rows']) == 11         # of the first split
    measurements.measure_recipes(seeds=2, folder=tmp_path/'runs')
    rows = load_results('amazon_recipes')['rows']; made.remove(None)
    assert len(made) == 20 == len(set(made)) and len(rows) == 22 and all('shares' not in r and r['valid'] == 3 and 'test' not in r for r in rows)
    assert [(r['seconds'], r['accuracy']) for r in rows if r['what'] == ALL] == [(8., 1.)] * 2  # with the smaller networks the third would be wrong
    monkeypatch.setattr(measurements, 'recipe_told', lambda *r: 'another'); made.clear()
    measurements.measure_recipes(seeds=1, folder=tmp_path/'runs'); assert len(made) == 10    # what was made otherwise is made anew


def test_budgets_of_rated_sentences():
    "The curve of lesson 10: every run is there, by the plans of the code, and with most labels the order is as its text says."
    s = Study.load(results_path('amazon_budgets.json'))
    assert s.missing == 0 and s.asked['plans'] == {p.name: repr(p) for p in budget_plans()} and s.budgets == BUDGETS
    assert {n: len(v) for n, v in s.asked['words'].items()} == {str(n): 5 for n in BUDGETS} and len(s.asked['seeds']) == 5
    assert len({r['test'] for r in s.runs}) == 1 and s.test_reads == len(s.runs)
    for worse in ('from scratch', 'feature extraction'): assert s.verdict('fine-tuning', worse, 800).low > 0


# Files that are written whole, or not at all

@pytest.mark.parametrize('where', ['write', 'fsync', 'replace'])
def test_a_writer_that_dies_leaves_the_old_file_and_no_part(tmp_path, monkeypatch, where):
    path = tmp_path/'a [1].json'; write_json(path, ['old'])
    def dies(*a): raise KeyboardInterrupt
    def write(part):
        part.write_text('half')
        if where == 'write': dies()
    if where != 'write': monkeypatch.setattr(os, where, dies)
    with pytest.raises(KeyboardInterrupt): replace_file(path, write, keep=tmp_path/'kept')
    kept = tmp_path/'kept'
    assert json.loads(path.read_text()) == ['old'] and [p.name for p in tmp_path.iterdir()] == [path.name] and not kept.exists()


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    calls, path = [], tmp_path/'a'
    for name in ('fsync', 'replace'):
        monkeypatch.setattr(os, name, lambda *a, name=name, real=getattr(os, name): calls.append(name) or real(*a))
    assert write_json(path, 1) == path and calls == ['fsync', 'replace']
    replace_file(path, lambda part: part.write_text('2'), keep=tmp_path/'b')
    assert (path.read_text(), (tmp_path/'b').read_text()) == ('2', '1\n') and calls[2:] == ['fsync', 'replace', 'replace'] and len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize('odd', [float('nan'), float('inf'), {1, 2}])
def test_what_is_no_json_is_not_written(tmp_path, odd):
    with pytest.raises((ValueError, TypeError)): write_json(tmp_path/'a', [odd])
    assert not list(tmp_path.iterdir())


def test_parts_of_killed_programs_go_and_those_of_others_stay(tmp_path):
    old, new, other = (tmp_path/n for n in ('.run [1].01234567.part', '.run [1].89abcdef.part', '.run [1].2.01234567.part'))
    for p in (old, new, other): p.write_text('half')
    for p in (old, other): os.utime(p, (1, 1))
    write_json(tmp_path/'run [1]', 1); assert not old.exists() and new.exists() and other.exists(), 'somebody may still write the new one'
    remove_parts(tmp_path/'run [1]'); assert sorted(p.name for p in tmp_path.iterdir()) == [other.name, 'run [1]']


def test_results_are_written_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(measurements, 'results_path', lambda name, new=False: tmp_path/name)
    path = measurements.save_results('x', 'Größer?', 'make x', [dict(a=1)])
    assert path == tmp_path/'x.json' and 'Größer?' in path.read_text(encoding='utf-8') and load_results('x')['rows'] == [dict(a=1)]
    monkeypatch.setattr(os, 'replace', lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError): measurements.save_results('x', 'Smaller?', 'make x', [])
    assert load_results('x')['question'] == 'Größer?' and [p.name for p in tmp_path.iterdir()] == ['x.json']


def test_epochs_are_estimated_within_a_quarter():
    "What the freeze explorer tells after its one measured step, against what `fit` took: six plans of each network."
    results = load_results('explorer_estimates'); rows = pd.DataFrame(results['rows'])
    assert results['command'].startswith('python -m transfer_course') and results['machine']['cores']
    assert list(rows.network) == ['pocket-resnet'] * 6 + ['minilm'] * 6 and list(rows.how) == [repr(p) for k in CUTS for p in estimate_plans(k)]
    for r in results['rows']:
        estimated, measured = (pd.DataFrame(r['turns'])[k].median() for k in ('estimated', 'measured'))
        assert r['estimated'] == pytest.approx(estimated, abs=1e-4) and r['measured'] == pytest.approx(measured, abs=1e-4)
        assert r['off'] == pytest.approx(estimated / measured - 1, abs=.02) and abs(r['off']) <= .25, r
