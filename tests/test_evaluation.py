"Reports: figures as scikit-learn's, one sentence for each fault, names from data made harmless, JSON there and back."
import json
import re
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, classification_report, f1_score, roc_auc_score

from transfer_course.backbones import attach_head, load_backbone
from transfer_course.evaluation import EvaluationError, Report, evaluate, macro_f1, mean_interval, paired_difference, wilson
from transfer_course.tasks import Split, Task

NO_TORCH = '''import sys
class Without:
    def find_spec(self, name, *more):
        if name.split('.')[0] == 'torch': raise ImportError('there is no torch here')
sys.meta_path.insert(0, Without())
'''
HOSTILE = '<img src=x onerror=alert(1)>$\\frac'


def answers(n=200, classes=3, seed=0, skill=1., split='test', names=None):
    "A report of made-up answers that are right more often than not."
    rng = np.random.default_rng(seed); labels = np.random.default_rng(99).integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) + skill * np.eye(classes)[labels]; p = np.exp(logits)
    return Report(split, names or [f'c{i}' for i in range(classes)], labels, p / p.sum(1, keepdims=True), [f'{i}.jpg' for i in range(n)])


def test_table_is_that_of_scikit_learn():
    r = answers(); want = classification_report(r.labels, r.predictions, target_names=r.classes, output_dict=True)
    for mine, theirs in [(c, c) for c in r.classes] + [('macro mean', 'macro avg'), ('weighted mean', 'weighted avg')]:
        assert np.allclose(r.table.loc[mine, ['precision', 'recall', 'f1']], [want[theirs][k] for k in ('precision', 'recall', 'f1-score')])
    assert np.isclose(macro_f1(r.confusion), f1_score(r.labels, r.predictions, average='macro')) and r.table.examples['macro mean'] == 200


def test_rates_have_wilson_intervals():
    r = answers(); m = r.confusion
    assert tuple(r.rates.loc['recall of c1', ['low', 'high']]) == wilson(m[1, 1], m[1].sum())
    assert tuple(r.rates.loc['precision of c1', ['right', 'of']]) == (m[1, 1], m[:, 1].sum()) and r.rates.rate['accuracy'] == r.accuracy


def test_wilson_covers_and_mean_interval_is_students():
    rng = np.random.default_rng(0); hits = rng.binomial(50, .9, 2000)
    assert .93 < np.mean([lo <= .9 <= hi for lo, hi in (wilson(h, 50) for h in hits)]) < .98
    assert wilson(0, 5)[0] == 0 and wilson(5, 5)[1] == 1
    runs = rng.normal(size=(2000, 5)); assert .93 < np.mean([lo <= 0 <= hi for _, lo, hi in map(mean_interval, runs)]) < .97


def test_calibration_is_that_of_scikit_learn():
    r = answers(1000); right, sure = calibration_curve(r.hits, r.confidence, n_bins=10)
    t = r.calibration(); assert np.allclose(t.right, right) and np.allclose(t.confidence, sure) and t.examples.sum() == 1000
    assert np.isclose(r.ece, (t.examples * abs(t.right - t.confidence)).sum() / 1000)
    perfect = Report('test', ['a', 'b'], [0, 1], np.eye(2)); assert perfect.ece == 0 and len(perfect.calibration()) == 1


def test_curves_of_two_classes():
    r = answers(classes=2); y, s = r.labels == 1, r.probabilities[:, 1]
    assert r.roc_area == roc_auc_score(y, s) and r.mean_precision == average_precision_score(y, s)
    assert r.roc.false_positives.is_monotonic_increasing and r.precision_recall.recall.iloc[0] == 1 and r.plot_curves()


@pytest.mark.parametrize('classes', [2, 3, 40])
def test_report_shows_itself(classes, monkeypatch):
    r, shown = answers(classes=classes), []; monkeypatch.setattr('IPython.display.display', lambda x, **k: shown.append(x)); r._ipython_display_()
    table, figure = shown; assert 'macro mean' in table['text/html'] and table['text/plain'] == repr(r)
    assert figure.alt == r.alt and len(figure.data) < 100_000 and f'{r.accuracy:.1%}' in r.alt
    assert len(r.plot().axes) == (3 if classes == 2 else 2)
    assert '\n' not in repr(r) and 'weighted mean' in str(r) and 'ECE' in str(r)


def test_names_from_data_are_harmless():
    r = answers(classes=2, names=[HOSTILE, 'b\x1b[31m\n</td>'], split='<b>split</b>'); r.ids[0] = '<script>'
    html = r._repr_html_()
    assert '<img' not in html and html.count('</td>') == 16 and '<b>' not in html
    assert '\x1b' not in str(r)
    for fig in (r.plot(), r.plot_curves()): fig.canvas.draw()


def test_a_class_that_the_split_lacks():
    p = np.full((4, 3), 1 / 3); p[:, 0] += .1; p[:, 1:] -= .05
    r = Report('valid', ['a', 'b', 'lynx'], [0, 0, 1, 1], p)
    assert np.isnan(r.table.loc['lynx', 'recall']) and np.isclose(r.table.loc['macro mean', 'recall'], .5) and 'no example of lynx' in str(r) and r.plot()
    assert "no example of lynx" in r._repr_html_() and 'NaN' not in repr(r)
    with pytest.raises(EvaluationError, match='no example of b'): Report('valid', ['a', 'b'], [0, 0], np.eye(2)).roc_area  # noqa: B018


GOOD = np.array([[.9, .1], [.2, .8]])
FAULTS = {
    'nothing': (lambda: Report('test', ['a', 'b'], [], np.zeros((0, 2))), "'test' is empty"),
    'too few scores': (lambda: Report('test', ['a', 'b'], [0, 1], GOOD[:1]), r'2 labels and 2 classes, but .* \[1, 2\]'),
    'flat scores': (lambda: Report('test', ['a', 'b'], [0, 1], GOOD[:, 0]), r'shape \[2\]'),
    'NaN': (lambda: Report('test', ['a', 'b'], [0, 1], np.array([[.9, .1], [np.nan, .8]]), ['x', 'y.jpg']), r'example y.jpg has scores that are no numbers'),
    'logits': (lambda: Report('test', ['a', 'b'], [0, 1], GOOD * 4), 'apply softmax'),
    'unknown label': (lambda: Report('test', ['a', 'b'], [0, 2], GOOD), r'example 1 has the unknown label 2 .*from 0 to 1'),
    'negative label': (lambda: Report('test', ['a', 'b'], [-1, 1], GOOD), 'unknown label -1'),
    'labels as words': (lambda: Report('test', ['a', 'b'], ['a', 'b'], GOOD), 'no whole numbers'),
    'ids': (lambda: Report('test', ['a', 'b'], [0, 1], GOOD, ['x']), '2 labels and 1 ids'),
    'ROC of three': (lambda: answers().roc_area, 'this report has 3'),
    'curves of three': (lambda: answers().plot_curves(), 'are for two classes'),
    'no trial': (lambda: wilson(0, 0), 'at least one example'),
    'one run': (lambda: mean_interval([.5]), 'at least two seeds'),
    'other sizes': (lambda: paired_difference(answers(200), answers(100)), r'not on the same examples \(200 and 100\)'),
    'other classes': (lambda: paired_difference(answers(classes=2), answers(classes=3)), 'same classes'),
    'other examples': (lambda: paired_difference(answers(), shifted()), 'number 3 differs'),
    'metric': (lambda: paired_difference(answers(), answers(), 'recall'), "choose 'accuracy' or 'macro F1'"),
    'no file': (lambda: Report.load('nowhere.json'), 'no report'),
    'no pictures': (lambda: answers().show_mistakes(), 'give the split'),
}
def shifted(): r = answers(); r.ids[3] = 'another.jpg'; return r


@pytest.mark.parametrize('fault', FAULTS)
def test_one_sentence_for_each_fault(fault):
    call, words = FAULTS[fault]
    with pytest.raises(EvaluationError, match=words) as e: call()
    text = str(e.value); assert '\n' not in text and text.endswith('.') and len(text) < 220 and isinstance(e.value, ValueError)


@pytest.fixture(scope='module')
def task():
    rng = np.random.default_rng(0)
    def part(name, n): return Split(name, rng.integers(0, 255, (n, 32, 32, 3), dtype=np.uint8), np.arange(n) % 2, [f'{name}{i}' for i in range(n)])
    return Task('noise', 'pictures', ['a', 'b'], part('train', 8), part('valid', 8), part('test', 12))


@pytest.fixture(scope='module')
def model(task): return attach_head(load_backbone('pocket-resnet', pretrained=False, verbose=False), task)


def test_evaluate_refuses_what_can_not_be_measured(model, task):
    def split(labels, classes=('a', 'b')): return Split('odd', task.test.inputs[:len(labels)], labels, range(len(labels)), classes=list(classes))
    for labels, classes, words in (([0, 1], 'ba', 'another order'), ([0, 1], 'ac', 'only one of them knows c'), ([0, 1], 'abc', 'knows c'),
                                   ([0, 0], 'ab', 'no example of b'), ([0, 1, 5], 'ab', 'unknown label 5'), ([], 'ab', 'empty')):
        with pytest.raises(EvaluationError, match=words): evaluate(model, split(labels, classes))
    assert evaluate(model, split([0, 0]), allow_missing=True).absent == ['b'] and evaluate(model, split([0, 1])).examples is not None


def test_mistakes_are_the_most_confident_ones(model, task):
    r = evaluate(model, task.test); t = r.mistakes(3)
    wrong = [i for i in r.confidence.argsort()[::-1] if not r.hits[i]][:3]
    assert t.row.tolist() == wrong and t.id.tolist() == [task.test.ids[i] for i in wrong] and (t.truth != t.prediction).all()
    assert len(r.show_mistakes(3).axes) == min(3, len(wrong))
    other = Report('test', r.classes, r.labels, r.probabilities, r.ids)
    assert other.show_mistakes(2, split=task.test) and len(Report('t', ['a', 'b'], [0, 1], GOOD).mistakes()) == 0
    with pytest.raises(EvaluationError, match='not the one of the report'): other.show_mistakes(split=task.valid)
    perfect = Report('test', ['a', 'b'], task.test.labels, np.eye(2)[task.test.labels], task.test.ids, examples=task.test)
    assert 'No mistakes' in perfect.show_mistakes().axes[0].get_title()


def test_mistakes_of_texts(recwarn):
    texts = ['bad $x$ <b>', 'fine', 'so \N{UNICORN FACE} so']; split = Split('test', texts, [0, 1, 0], ['0', '1', '2'])
    r = Report('test', ['neg', 'pos'], split.labels, np.array([[.1, .9], [.2, .8], [.4, .6]]), split.ids, examples=split)
    assert r.mistakes().text.tolist() == ['bad $x$ <b>', 'so \N{UNICORN FACE} so']; fig = r.show_mistakes(); fig.canvas.draw()
    assert 'so [unicorn face] so' in fig.axes[0].texts[1].get_text() and not [w for w in recwarn if 'Glyph' in str(w.message)]


def test_saved_reports_come_back_bit_for_bit(tmp_path, model, task):
    for r in (evaluate(model, task.test), answers(classes=4)):
        back = Report.load(r.save(tmp_path/'r.json'))
        assert back.probabilities.dtype == r.probabilities.dtype and (back.probabilities == r.probabilities).all() and back.table.equals(r.table)
        assert back.ids == r.ids and paired_difference(r, back).value == 0 and [p.name for p in tmp_path.iterdir()] == ['r.json']
    for text in ('{"a": 1}', '[1]', (tmp_path/'r.json').read_text()[:99], ''):
        (tmp_path/'x.json').write_text(text)
        with pytest.raises(EvaluationError, match='no report of this course'): Report.load(tmp_path/'x.json')


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    r = answers(); r.save(tmp_path/'r.json'); old = (tmp_path/'r.json').read_text()
    monkeypatch.setattr(json, 'dumps', lambda *a, **k: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError): answers(seed=1).save(tmp_path/'r.json')
    assert (tmp_path/'r.json').read_text() == old and len(list(tmp_path.iterdir())) == 1


def test_paired_bootstrap_covers_and_is_seeded():
    a, b = answers(skill=1.5), answers(seed=1, skill=.3); d = paired_difference(a, b)
    assert d == paired_difference(a, b) != paired_difference(a, b, seed=1) and d.low < d.value < d.high and d.detectable and 'first is better' in str(d)
    assert np.isclose(d.value, a.accuracy - b.accuracy) and paired_difference(b, a).value == -d.value and 'no detectable' in str(paired_difference(a, a))
    assert np.isclose(paired_difference(a, b, 'macro F1').value, a.table.f1['macro mean'] - b.table.f1['macro mean'])
    same = [paired_difference(answers(seed=2 * i), answers(seed=2 * i + 1), resamples=300) for i in range(1, 101)]
    assert np.mean([not d.detectable for d in same]) > .87, 'two models of equal skill'


def test_groups_are_drawn_whole():
    a, b = answers(skill=1.5), answers(seed=1, skill=.3)
    def five(r, groups): return Report('t', r.classes, np.repeat(r.labels, 5), np.repeat(r.probabilities, 5, 0), groups=groups)
    alone, grouped = (paired_difference(five(a, g), five(b, g)) for g in (None, [str(i) for i in np.repeat(np.arange(200), 5)]))
    once = paired_difference(a, b)
    assert np.isclose(grouped.high - grouped.low, once.high - once.low, rtol=.15) and alone.high - alone.low < .6 * (once.high - once.low)


def test_reports_need_no_torch(root):
    code = 'from transfer_course.evaluation import Report; import numpy as np; print(Report("t", ["a", "b"], [0, 1], np.eye(2)))'
    done = subprocess.run([sys.executable, '-c', NO_TORCH + code], cwd=root, capture_output=True, text=True)
    assert '100.0% right' in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize('name', ['08_is_it_better', '08b_studies'])
def test_folded_solutions_run(root, name, tmp_path):
    "Each folded solution is run after the cell before it, in the lesson's own kernel, and holds an assert."
    from nbclient import NotebookClient
    nb = nbformat.read(root/'nbs'/f'{name}.ipynb', 4); cells = []; found = 0
    for c in nb.cells:
        cells.append(c)
        if c.cell_type == 'markdown' and '<details>' in c.source:
            for code in re.findall(r'```python\n(.*?)```', c.source, re.S): assert 'assert' in code; cells.append(nbformat.v4.new_code_cell(code)); found += 1
    nb.cells = cells; assert found >= 2
    NotebookClient(nb, timeout=300, kernel_name='python3', resources=dict(metadata=dict(path=str(tmp_path)))).execute()


def test_groups_of_a_report_may_come_as_an_array():
    a, b = (Report('t', ['a', 'b'], [0, 1, 0], [[.9, .1], [.2, x], [.6, .4]], groups=np.array([1, 1, 2])) for x in (.8, .8))
    assert paired_difference(a, b).value == 0
    with pytest.raises(EvaluationError, match='2 groups for 3 examples'): Report('t', ['a', 'b'], [0, 1, 0], [[.9, .1], [.2, .8], [.6, .4]], groups=[1, 2])


def test_mistakes_of_another_split_are_refused(model, task):
    r = evaluate(model, task.test)
    with pytest.raises(EvaluationError, match='not the one of the report'): r.mistakes(3, split=task.valid)
    back = Report('test', r.classes, r.labels, r.probabilities)                 # without names, the number of examples must do
    assert back.show_mistakes(2, split=task.test)


def test_one_group_can_not_be_drawn_anew():
    a, b = (answers() for _ in range(2)); a.groups = b.groups = ['g'] * len(a.labels)
    with pytest.raises(EvaluationError, match='one group'): paired_difference(a, b)


def test_a_task_is_no_split():
    with pytest.raises(EvaluationError, match='such as task.test'): evaluate(None, [1, 2])


def test_a_folder_is_no_report(tmp_path):
    with pytest.raises(EvaluationError): Report.load(tmp_path)
