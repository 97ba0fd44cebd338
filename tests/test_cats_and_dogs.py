"The case study on pictures: explanations, suspects, advice, and that what the lesson shows is what the results file says."
import json
import re

import numpy as np
import pytest
import torch
from conftest import ROOT

from transfer_course.backbones import attach_head, load_backbone
from transfer_course.backstage.assets import results_path
from transfer_course.backstage.plots import colors_of
from transfer_course.backstage.views import budget_facts
from transfer_course.cats_and_dogs import draw_costs, grad_cam, label_suspects, race_plans, show_cam
from transfer_course.studies import Study
from transfer_course.tasks import load_pets
from transfer_course.widgets import BudgetView, answer


WIDE = 'seeds and examples'


@pytest.fixture(scope='module')
def task(): return load_pets('drawn', n_train=40, n_valid=10, n_test=20, size=64, verbose=False)


@pytest.fixture(scope='module')
def model(task): return attach_head(load_backbone('pocket-resnet', verbose=False), task)


@pytest.fixture(scope='module')
def photos(): return Study.load(results_path('cats_and_dogs_study.json'))


@pytest.fixture(scope='module')
def stored():
    "All text that lesson 09 shows."
    nb = json.loads((ROOT/'nbs'/'09_cats_and_dogs.ipynb').read_text(encoding='utf-8'))
    outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
    kinds = lambda o: [o.get('text', '')] + [o.get('data', {}).get(k, '') for k in ('text/plain', 'text/html')]
    return '\n'.join(''.join(t) for o in outputs for t in kinds(o))


def by_hand(model, picture, stage, above, target):
    "Grad-CAM of one picture with a hook and a full backward pass, the way it is usually written."
    kept = {}
    hook = model.stages[stage].register_forward_hook(lambda m, i, o: kept.update(a=o) or o.retain_grad())
    model.zero_grad(); model(model.preprocess(picture))[0, target].backward(); hook.remove()
    a = kept['a']; cam = torch.relu((a.grad.mean((2, 3), keepdim=True) * a).sum(1))[0].detach()
    model.zero_grad(set_to_none=True)
    return cam / cam.max()


def test_grad_cam_is_what_hooks_give(model, task):
    picture = task.test.inputs[:1]
    want = by_hand(model, picture, 'layer3', 'layer4', 1)
    heat = grad_cam(model, picture, 'layer3', [1])[0]
    small = torch.nn.functional.interpolate(want[None, None], (64, 64), mode='bilinear', align_corners=False)[0, 0]
    assert np.allclose(heat, small / small.max(), atol=1e-4)


def test_grad_cam_leaves_the_model_alone(model, task):
    state = {k: v.clone() for k, v in model.state_dict().items()}; model.train()
    modes = [m.training for m in model.modules()]
    grad_cam(model, task.test.inputs[:2])
    assert [m.training for m in model.modules()] == modes and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()); model.eval()


def test_grad_cam_lies_where_a_backbone_that_crops_looked(task):
    "resnet18's preset resizes to 256 and crops 224: the heat fills seven eighths of the picture, and the rest has none."
    model = attach_head(load_backbone('resnet18', pretrained=False, verbose=False), task)
    heat = grad_cam(model, task.test.inputs[:2], 'layer2', [0, 1])
    assert heat.shape == (2, 64, 64) and heat[:, 4:60, 4:60].max() == 1
    edge = np.ones((64, 64), bool); edge[4:60, 4:60] = False; assert not heat[:, edge].any() and heat[:, 4:60, [4, 59]].any()


def test_grad_cam_lies_in_the_middle_that_is_looked_at(task):
    heat = grad_cam(attach_head(load_backbone('pocket-resnet', centre=.5, verbose=False), task), task.test.inputs[:2], 'layer2', [0, 1])
    assert heat.shape == (2, 64, 64) and heat[:, 16:48, 16:48].max() == 1
    outside = heat.copy(); outside[:, 16:48, 16:48] = 0; assert not outside.any()


def test_grad_cam_by_name_number_and_none(model, task):
    pictures = task.test.inputs[:3]
    said = model(model.preprocess(pictures)).argmax(1).tolist()
    assert np.array_equal(grad_cam(model, pictures), grad_cam(model, pictures, target=said))
    assert np.array_equal(grad_cam(model, pictures, target='dog'), grad_cam(model, pictures, target=[1, 1, 1]))
    with torch.no_grad(): assert grad_cam(model, pictures, 'layer4').shape == (3, 64, 64)          # also where gradients are off


@pytest.mark.parametrize('kw, words', [
    (dict(stage='head'), 'head hands on no picture'), (dict(target='wolf'), "no class 'wolf'"), (dict(stage='layer9'), 'layer9')])
def test_grad_cam_says_what_is_wrong(model, task, kw, words):
    with pytest.raises(ValueError, match=words): grad_cam(model, task.test.inputs[:1], **kw)


def test_show_cam_takes_any_name(model, task):
    fig = show_cam(task.test.inputs[:2], grad_cam(model, task.test.inputs[:2]), ['$x$ <b>', 'y' * 500])
    fig.canvas.draw(); assert len(fig.axes[1].get_title()) <= 24


def test_suspects_find_planted_errors():
    rng = np.random.default_rng(0); y = np.repeat([0, 1], 100); x = rng.normal(size=(200, 5)) + 2 * y[:, None]
    wrong = rng.choice(200, 10, replace=False); dirty = y.copy(); dirty[wrong] = 1 - dirty[wrong]
    t = label_suspects(torch.tensor(x), dirty)
    assert np.isin(t.row[:10], wrong).sum() >= 9 and (t.better[:9] != t.label[:9]).all() and t.belief.is_monotonic_increasing
    assert sorted(t.row) == list(range(200)) and (t.label == dirty[t.row]).all()


def test_suspects_of_few_labels():
    with pytest.raises(ValueError, match='Class 1 has 3 examples'): label_suspects(torch.zeros(10, 2), [0] * 7 + [1] * 3)


@pytest.mark.parametrize('epochs', [8, 16, 40])
def test_race_plans_have_equal_epochs(epochs):
    plans = race_plans(epochs, mixup=.4)
    assert {p.epochs for p in plans} == {epochs} and len({p.name for p in plans}) == 5
    assert [p.mixup for p in plans] == [.4, 0, 0, .4, .4] and [p.pretrained for p in plans] == [False, True, True, True, True]


def test_study_is_whole(photos):
    assert not photos.missing and len(photos.runs) == 125 == photos.test_reads
    assert list(photos.plans) == [p.name for p in race_plans()] and photos.budgets == [20, 50, 100, 200, 500]
    assert photos.asked['plans'] == {p.name: repr(p) for p in race_plans(40, mixup=.4)}
    assert {len(r['labels']) for r in photos.runs} == {400}


@pytest.mark.parametrize('plan', ['feature extraction', 'fine-tuning'])
def test_transfer_beats_scratch_at_every_budget(photos, plan):
    for budget in photos.budgets: assert photos.verdict(plan, 'from scratch', budget).low > 0, budget


def test_prose_of_lesson_holds(photos):
    "What the lesson says in words about few labels, hundreds of labels, random crops and their price."
    ahead = {b: photos.verdict('fine-tuning', 'feature extraction', b) for b in photos.budgets}
    assert [b for b, v in ahead.items() if v.low > 0] == [200, 500] == [b for b, v in ahead.items() if v.detectable]
    cost = photos.summary().pivot(index='plan', columns='budget', values='seconds')
    for b in photos.budgets:
        assert not photos.verdict('frozen with crops', 'feature extraction', b).detectable and cost[b].idxmin() == 'feature extraction'
        assert cost[b]['frozen with crops'] > 2 * cost[b]['feature extraction']
    assert answer(photos, 20)['headline'].count('open between') == answer(photos, 50)['headline'].count('open between') == 1
    for b in (20, 50): assert any('feature extraction costs least' in s for s in answer(photos, b)['says'])
    for b in (200, 500): assert answer(photos, b)['headline'] == f'With {b} labels: fine-tuning.'
    wide = {b: answer(photos, b, over='seeds and examples')['headline'] for b in photos.budgets}
    for b in (20, 50, 100): assert 'feature extraction' in wide[b], b
    for b in (200, 500): assert wide[b] == f'With {b} labels: open between fine-tuning and gradual unfreezing.'
    assert cost[200]['gradual unfreezing'] < cost[200]['fine-tuning'] and 'feature extraction' not in answer(photos, 100)['headline']


def test_lesson_shows_what_the_results_say(photos, stored):
    for budget in photos.budgets:
        for pair in [('fine-tuning', 'from scratch'), ('fine-tuning', 'feature extraction'), ('frozen with crops', 'feature extraction')]:
            assert str(photos.verdict(*pair, budget)) in stored, (pair, budget)
        told = answer(photos, budget, over=WIDE); assert '\n  '.join([told['headline'], *told['says']]) in stored, budget
        for over in ('seeds', WIDE): assert answer(photos, budget, over=over)['headline'].split(': ')[1] in stored, (budget, over)
    assert str(photos.crossover('fine-tuning', 'feature extraction')) in stored and repr(photos) in stored
    assert f'{photos.table().seconds.sum() / 60:.0f} minutes of training in all' in stored and str(photos.asked['sizes']) in stored
    for r in photos.summary().itertuples(): assert f'{100 * r.mean:.1f}% ({100 * r.low:.1f} to {100 * r.high:.1f})' in stored, r


def test_prose_of_lesson_types_no_accuracy_and_no_time():
    nb = json.loads((ROOT/'nbs'/'09_cats_and_dogs.ipynb').read_text(encoding='utf-8'))
    prose = '\n'.join(t for t in (''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'markdown') if not t.startswith('<!-- badges'))
    assert not re.findall(r'\d+(?:\.\d+)?\s?%', prose) and not re.findall(r'\b(?:minute|hour)s?\b', prose)


@pytest.mark.parametrize('over', ['seeds', WIDE])
def test_answer_follows_the_figures(photos, over):
    t, cost = photos.summary(), lambda s: f'{s:.2g} s a run' if s < 10 else f'{s:,.0f} s a run' if s < 120 else f'{s / 60:.0f} min a run'
    for budget in photos.budgets:
        u = t[t.budget == budget].set_index('plan'); best = u['mean'].idxmax(); second = u['mean'].drop(best).idxmax()
        told = answer(photos, budget, over=over); head, says = told['headline'], ' '.join(told['says'])
        rivals = [p for p in u.index if p != best and not photos.verdict(best, p, budget, over=over).detectable]
        assert head.startswith(f'With {budget} labels: open between {best}' if rivals else f'With {budget} labels: {best}.')
        assert {p for p in u.index if p in head} == {best, *rivals} and str(photos.verdict(best, second, budget, over=over)) in says
        cheap = u.seconds[[best, *rivals]].idxmin()
        if cheap == best: assert f'{best} took {cost(u.seconds[best])}' in says and 'costs least' not in says
        elif cost(u.seconds[cheap]) == cost(u.seconds[best]): assert f'{cheap} costs least: {cost(u.seconds[cheap])}, hardly less than {best}.' in says
        else: assert f'{cheap} costs least: {cost(u.seconds[cheap])}, against {cost(u.seconds[best])[:-6]} for {best}.' in says
        rows = dict(next(f['rows'] for f in budget_facts(photos, over=over)['frames'] if f['labels'] == budget))
        for p in u.itertuples(): assert rows[p.Index].startswith(f'{100 * p.mean:.1f}% ({100 * p.low:.1f} to {100 * p.high:.1f}), ')


def test_lesson_shows_the_view_of_the_study(photos, stored):
    view = BudgetView(photos, labels=200, over=WIDE)
    assert view.twin().text in stored and view.ask(300) in stored and '300 labels were not measured' in stored


def test_a_plan_has_one_colour_in_every_figure(photos):
    def lines(fig): return {l.get_label(): l.get_color() for l in fig.axes[0].lines if l.get_label() in photos.plans}
    def bars(fig): return {c.get_label(): c.lines[0].get_color() for c in fig.axes[0].containers}
    drawn = [lines(photos.plot()), bars(draw_costs(photos)), {l['plan']: l['colour'] for l in budget_facts(photos)['lines']}]
    assert drawn[0] == drawn[1] == drawn[2] == colors_of(photos.plans) and len(set(drawn[0].values())) == len(photos.plans)


def test_costs_are_drawn(photos):
    fig = draw_costs(photos); assert len(fig.axes[0].lines) >= 5 and 'seconds' in fig.axes[0].get_xlabel()
