"What the course claims about its weights and its experiments is what the files say."
import hashlib
import json

import pandas as pd
import pytest

from transfer_course.backstage.assets import asset_path
from transfer_course.backstage.measurements import CUTS, estimate_plans, load_results, photo_plans
from transfer_course.backstage.pretraining import CATS_AND_DOGS, model_card
from transfer_course.evaluation import mean_interval
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


def runs(name, plans):
    results = load_results(name); rows = pd.DataFrame(results['rows'])
    assert results['command'].startswith('python -m transfer_course') and results['machine']['cores']
    assert set(rows.how) == {repr(p) for p in plans}, 'the recorded plans are not those of the code: make the file anew'
    wide = rows.pivot(index='seed', columns='plan', values='accuracy')
    assert len(wide) >= 5 and wide.notna().all().all() and (rows.labels == 200).all()
    return wide


def test_drawn_pictures_hold_their_tuning():
    wide = runs('three_ways_drawn', [from_scratch(), feature_extraction(), fine_tuning()]); mean = wide.mean()
    assert .6 <= mean['from scratch'] <= .8 and mean['feature extraction'] > mean['from scratch']
    assert mean['fine-tuning'] - mean['from scratch'] >= .1


def test_photographs_gain_from_transfer():
    wide = runs('three_ways_photos', photo_plans()); mean = wide.mean()
    assert mean['feature extraction'] >= .77 and mean['fine-tuning'] > mean['feature extraction']
    assert mean_interval(wide['fine-tuning'] - wide['from scratch'])[1] > .1


def test_epochs_are_estimated_within_a_quarter():
    "What the freeze explorer tells after its one measured step, against what `fit` took: six plans of each network."
    results = load_results('explorer_estimates'); rows = pd.DataFrame(results['rows'])
    assert results['command'].startswith('python -m transfer_course') and results['machine']['cores']
    assert list(rows.network) == ['pocket-resnet'] * 6 + ['minilm'] * 6 and list(rows.how) == [repr(p) for k in CUTS for p in estimate_plans(k)]
    for r in results['rows']:
        estimated, measured = (pd.DataFrame(r['turns'])[k].median() for k in ('estimated', 'measured'))
        assert r['estimated'] == pytest.approx(estimated, abs=1e-4) and r['measured'] == pytest.approx(measured, abs=1e-4)
        assert r['off'] == pytest.approx(estimated / measured - 1, abs=.02) and abs(r['off']) <= .25, r
