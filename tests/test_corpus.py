"The written reviews and the behavioural cases: their form, their variety, and the figures that the results file claims."
import csv
import hashlib
from collections import Counter

import pytest

from transfer_course.backstage.assets import asset_path
from transfer_course.backstage.measurements import load_results, shared_runs

LABELS = {'negative', 'neutral', 'positive'}


def rows(name):
    with open(asset_path(name), encoding='utf-8', newline='') as f: return list(csv.DictReader(f))


@pytest.fixture(scope='module')
def reviews(): return rows('reviews.csv')


@pytest.fixture(scope='module')
def cases(): return rows('behaviours.csv')


@pytest.fixture(scope='module')
def measured(): return load_results('written_reviews')['rows']


def test_reviews_have_their_columns_and_lengths(reviews):
    assert len(reviews) >= 1150
    for r in reviews:
        assert list(r) == ['text', 'label', 'product', 'category', 'style'] and all(v == v.strip() and v for v in r.values())
        assert r['label'] in LABELS and 5 <= len(r['text'].split()) <= 80
    assert len({r['text'] for r in reviews}) == len(reviews)


def test_product_says_nothing_about_label(reviews):
    by_product = {}
    for r in reviews: by_product.setdefault(r['product'], Counter())[r['label']] += 1
    assert len(by_product) >= 40 and len({r['category'] for r in reviews}) >= 10
    assert all(max(c.values()) - min(c[x] for x in LABELS) <= 1 for c in by_product.values())
    assert len({(r['product'], r['category']) for r in reviews}) == len(by_product)


def test_every_style_has_several_labels(reviews):
    styles = {}
    for r in reviews: styles.setdefault(r['style'], set()).add(r['label'])
    assert len(styles) >= 12 and all(len(v) > 1 for v in styles.values())


def test_no_two_reviews_share_a_run_of_words(reviews):
    texts = [r['text'] for r in reviews]
    assert not shared_runs(texts, 8)
    assert shared_runs([*texts, texts[0]], 5)          # and the search does find one


def test_results_are_of_this_corpus_and_meet_the_bars(reviews, measured):
    corpus = next(r for r in measured if r['what'] == 'corpus')
    assert corpus['reviews'] == len(reviews) and corpus['labels'] == dict(Counter(r['label'] for r in reviews))
    counter = [r['accuracy'] for r in measured if r['what'].startswith('word counter')]
    assert len(counter) == 5 and sum(counter) / 5 < .8
    second = next(r for r in measured if r['what'] == 'second labels')
    assert second['texts'] >= 150 and second['agreement'] >= .9 and second['kappa'] >= .85


def test_second_labels_belong_to_reviews(reviews, measured):
    own = {hashlib.sha256(r['text'].encode()).hexdigest()[:16]: r['label'] for r in reviews}
    second = load_results('reviews_second_labels')['rows']
    assert {r['text'] for r in second} <= set(own) and {r['label'] for r in second} == LABELS
    right = sum(own[r['text']] == r['label'] for r in second) / len(second)
    assert right == pytest.approx(next(r for r in measured if r['what'] == 'second labels')['agreement'], abs=1e-4)


def test_behaviours(cases, reviews):
    assert len(cases) >= 150 and len({c['capability'] for c in cases}) >= 6
    assert min(Counter(c['capability'] for c in cases).values()) >= 20
    for c in cases:
        assert list(c) == ['capability', 'kind', 'text', 'other', 'expected', 'note'] and c['kind'] in ('MFT', 'INV', 'DIR') and c['text'].strip()
        assert c['expected'] in (('more positive', 'more negative') if c['kind'] == 'DIR' else LABELS)
        assert bool(c['other']) == (c['kind'] != 'MFT')
    assert not {c['text'] for c in cases} & {r['text'] for r in reviews}
