"The case study on reviews: abilities, words that spoke, and plans."
import re

import numpy as np
import pandas as pd
import pytest
import torch

from transfer_course.backbones import attach_head, load_backbone
from transfer_course.product_reviews import occlusion, review_plans, score_behaviours, show_words


@pytest.fixture(scope='module')
def model(): return attach_head(load_backbone('minilm', verbose=False), ['negative', 'neutral', 'positive'])


class Says:
    "A model that counts two words."
    classes = ['negative', 'neutral', 'positive']


def said_by(score):
    "A stand-in for `run` that answers by `score(text)`: below 0 negative, above positive."
    def run(model, texts):
        s = torch.tensor([float(score(t)) for t in texts])
        return torch.stack([-4 * s, 1 - 2 * s.abs(), 4 * s], 1)
    return run


def test_behaviours_of_a_constant_answer(monkeypatch):
    monkeypatch.setattr('transfer_course.product_reviews.run', said_by(lambda t: 1))
    t = score_behaviours(Says()).set_index(['capability', 'kind'])
    assert t.cases.sum() >= 150 and (t.passed[t.index.get_level_values('kind') == 'MFT'] < .6).all()
    inv = t.passed[t.index.get_level_values('kind') == 'INV']
    assert (inv > 0).all() and (inv < .6).all()      # a constant never changes, and is still wrong about most


def test_behaviours_of_a_word_list(monkeypatch):
    glad, sad = {'love', 'great', 'superb', 'delicious', 'fantastic', 'adore'}, {'ugly', 'loathe', 'disgusting', 'boring', 'flimsy', 'pathetic'}
    def score(t): w = set(re.findall(r'\w+', t.lower())); return bool(w & glad) - bool(w & sad)
    monkeypatch.setattr('transfer_course.product_reviews.run', said_by(score))
    t = score_behaviours(Says()).set_index(['capability', 'kind']).passed
    assert t['vocabulary', 'MFT'] > t['word_order', 'MFT']


def test_behaviours_want_the_three_classes():
    m = Says(); m.classes = ['cat', 'dog']
    with pytest.raises(ValueError, match='cat, dog'): score_behaviours(m)
    m.classes = None
    with pytest.raises(ValueError, match='attach_head'): score_behaviours(m)


def test_occlusion_finds_the_word_that_counts(monkeypatch):
    monkeypatch.setattr('transfer_course.product_reviews.run', said_by(lambda t: 'love' in t.split()))
    t = occlusion(Says(), 'I love this')
    assert list(t.word) == ['I', 'love', 'this'] and t.effect.idxmax() == 1 and t.effect[1] == pytest.approx(8) and (t.effect[[0, 2]] == 0).all()


@pytest.mark.parametrize('kw, words', [(dict(text='one'), 'two words or more'), (dict(text='a b', toward='happy'), "no class 'happy'")])
def test_occlusion_says_what_is_wrong(kw, words):
    with pytest.raises(ValueError, match=words): occlusion(Says(), **kw)


def test_occlusion_on_the_real_network(model):
    t = occlusion(model, 'it broke within a week and I want my money back')
    assert len(t) == 11 and np.isfinite(t.effect).all() and t.effect.abs().max() > 0


def test_words_are_escaped():
    page = show_words(pd.DataFrame(dict(word=['<img src=x onerror=alert(1)>', '&'], effect=[0., 0.])))
    assert '<img' not in page and '&lt;img' in page and '&amp;' in page


def test_plans_leave_the_embeddings_alone(model):
    plans = {p.name: p for p in review_plans()}
    assert list(plans) == ['from scratch', 'feature extraction', 'last layers', 'gradual unfreezing', 'fine-tuning']
    assert not plans['from scratch'].pretrained
    assert all(model.names.index(ph.start) if isinstance(ph.start, str) else ph.start for n in list(plans)[1:] for ph in plans[n].phases)
