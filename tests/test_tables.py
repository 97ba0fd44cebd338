"Tables of texts: every kind of file, and a sentence for every kind of bad input."
import html, json, math, os, random, subprocess, sys, time

import numpy as np
import pandas as pd
import pytest

from transfer_course.backstage.tables import as_label, decoded, read_labels, read_table, same_text, texts_of, whole_groups
from transfer_course.tasks import TaskError, from_table, same_text as exported

WORDS = 'red blue green grey pink black white brown gold plum teal lime'.split()


def texts(n, start=0):
    "n texts that have nothing in common."
    rng = random.Random(start)
    return [' '.join(f'{w}{rng.randrange(10**6)}' for w in rng.sample(WORDS, 8)) for _ in range(n)]


def table(n=60, classes=('bad', 'good'), **more):
    return pd.DataFrame(dict(text=texts(n), label=[classes[i % len(classes)] for i in range(n)]) | more)


def load(*args, **more): return from_table(*args, **dict(verbose=False) | more)


def refused(call, *words):
    "The message of the TaskError: one sentence that has the words, and hides where a library stumbled."
    with pytest.raises(TaskError) as info: call()
    text = str(info.value)
    assert '\n' not in text and text.endswith('.') and len(text) < 600, text
    assert text[0].isupper() or text[0] in "'0123456789" or text.startswith(('near', 'valid', 'test', 'seed', 'classes', 'sep', 'encoding')), text
    assert info.value.__cause__ is None and (info.value.__context__ is None or info.value.__suppress_context__)
    for word in words: assert word in text, f'{word!r} is missing in: {text}'
    return info.value


def all_of(task): return {i: (t, task.classes[y]) for s in task.splits for i, t, y in zip(s.ids, s.inputs, s.labels)}


def save(path, data): path.write_bytes(data.encode() if isinstance(data, str) else data); return path


def csv_of(frame, **more): return frame.to_csv(index=False, **more)


# ---------------------------------------------------------------- files

def test_every_kind_of_file_gives_the_same_task(tmp_path):
    frame = table(30); frame.loc[3, 'text'] = 'He said "no, never";\n\ttwice – ünd ‘schön’ 👍'; frame.loc[4, 'text'] = 'NA'; frame.loc[5, 'text'] = '007'
    want = all_of(load(frame))
    files = dict(a=('a.csv', csv_of(frame)), b=('b.tsv', csv_of(frame, sep='\t')), c=('c.csv', csv_of(frame, sep=';')), d=('d.txt', csv_of(frame, sep='|')),
                 bom=('e.csv', '\ufeff' + csv_of(frame)), u16=('f.csv', csv_of(frame).encode('utf-16')), u32=('g.csv', csv_of(frame).encode('utf-32')),
                 quoted=('h.csv', csv_of(frame, quoting=1)), jsonl=('i.jsonl', frame.to_json(orient='records', lines=True)),
                 json=('j.json', frame.to_json(orient='records')), unicode=('k.jsonl', '\n\n'.join(json.dumps(r) for r in frame.to_dict('records'))),
                 blank=('l.csv', '\n\n' + csv_of(frame).replace('\n4', '\n\n4') + '\n\n'), trailing=('m.csv', csv_of(frame.assign(**{'': ''}))))
    for name, data in files.values():
        task = load(save(tmp_path/name, data))
        assert all_of(task) == want, name
        assert task.kind == 'texts' and task.skipped == []
    assert all_of(load(save(tmp_path/'n.csv', csv_of(frame.replace('👍', '', regex=True)).encode('cp1252')), encoding='cp1252')) != {}


@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_line_ends_are_survived(end, tmp_path):
    frame = table(30); text = csv_of(frame).replace('\n', end)
    assert all_of(load(save(tmp_path/'a.csv', text))) == all_of(load(save(tmp_path/'b.csv', text.rstrip()))) == all_of(load(frame))
    lines = csv_of(frame).split('\n'); mixed = ''.join(x + ('\n', '\r\n')[i % 2] for i, x in enumerate(lines))
    assert all_of(load(save(tmp_path/'c.csv', mixed))) == all_of(load(frame))
    assert all_of(load(save(tmp_path/'d.jsonl', frame.to_json(orient='records', lines=True).replace('\n', end)))) == all_of(load(frame))


def test_a_text_keeps_every_character(tmp_path):
    odd = ['=cmd|"/c calc"!A0', '<script>alert(1)</script>', "'; DROP TABLE x; --", ' spaces  kept ', 'a\r\nb', '👩‍👩‍👧 only', '🙂', 'İstanbul', 'x' * 5000,
            '@SUM(1)', '+1', 'null',
           'None', 'nan', 'NaN', 'N/A', 'TRUE', '2020-01-01', '1e5', '\ufefftext', '\u200bnot empty', '$x^2$', '%s {0}', '\\n']
    frame = pd.DataFrame(dict(text=odd + texts(20), label=['a', 'b'] * 22))
    for task in (load(frame, near=1), load(save(tmp_path/'a.csv', csv_of(frame)), near=1), load(save(tmp_path/'a.jsonl', frame.to_json(orient='records',
            lines=True)), near=1)):
        assert {t for t, _ in all_of(task).values()} == set(frame['text']) and not task.skipped


def test_names_from_data_are_escaped(tmp_path):
    frame = table(classes=('<b>bad</b>', '<script>')); frame.loc[0, 'text'] = '<script>x</script>'; frame.loc[1, 'text'] = ' '
    task = load(save(tmp_path/'<i>x.csv', csv_of(frame)))
    page = task._repr_html_()
    assert '<script>' not in page and '<b>bad' not in page and '<i>' not in page and html.escape('<script>') in page and 'rows left out' in page
    assert 'rows left out' in repr(task) and 'rows left out: 1, see .skipped' in task.source and task.skipped == [('row 2', 'no text')]


def test_figures_of_texts_name_what_the_font_lacks(recwarn):
    frame = table(); frame['text'] = [f'🦄 語 $x$ {t}' for t in frame['text']]
    fig = load(frame).show(2)
    fig.canvas.draw()
    said = [t.get_text() for t in fig.axes[0].texts]
    assert not [w for w in recwarn if 'Glyph' in str(w.message)] and len(said) == 4 and all('[unicorn face]' in s and '$x$' in s for s in said)


def test_wrong_encodings_are_named(tmp_path):
    rows = 'text,label\nfine,a\nUn caf\xe9 tr\xe8s bon,b\n'
    refused(lambda: load(save(tmp_path/'a.csv', rows.encode('cp1252'))), 'Line 3', "encoding='cp1252'", 'Un café très')
    refused(lambda: load(save(tmp_path/'a.csv', rows.encode('cp1252')), encoding='ascii'), 'Line 3', 'ascii', 'another encoding')
    refused(lambda: load(save(tmp_path/'a.csv', rows), encoding='klingon'), "'klingon'")
    refused(lambda: load(save(tmp_path/'b.csv', rows.encode('utf-16-le'))), 'utf-16-le')
    refused(lambda: load(save(tmp_path/'c.csv', rows.encode('utf-16')[:-1])), 'Line')
    assert decoded(rows.encode('cp1252'), 'x', 'cp1252') == rows


def test_damaged_characters(tmp_path):
    refused(lambda: load(save(tmp_path/'a.csv', b'text,label\nfine,a\nbr\0ken,b\n')), 'Line 3', 'NUL')
    refused(lambda: load(save(tmp_path/'a.csv', b'text,label\n' + bytes(900))), 'NUL')
    frame = table(); frame.loc[7, 'text'] = 'br\0ken'; refused(lambda: load(frame), 'Row 8', 'NUL')
    frame.loc[7, 'text'] = 'half \ud83d'; refused(lambda: load(frame), 'Row 8', 'half a character')
    refused(lambda: load(save(tmp_path/'a.jsonl', '{"text": "x\\ud83d", "label": 1}\n' * 3)), 'Row 1')


def test_ragged_rows_and_quotes(tmp_path):
    good = csv_of(table(20))
    refused(lambda: load(save(tmp_path/'a.csv', good + 'nice, but small,bad\n')), 'Line 22', '3 fields', 'has 2')
    refused(lambda: load(save(tmp_path/'a.csv', 'text,label,shop\n' + 'a,b,c\n' * 9 + 'only,two\n')), 'Line 11', '2 fields')
    refused(lambda: load(save(tmp_path/'a.csv', good + '"never closed,bad\nmore,good\n')), 'line 22', 'never closed')
    refused(lambda: load(save(tmp_path/'a.csv', good + '"said" he,bad\n')), 'line 22', 'quotes=False')
    task = load(save(tmp_path/'a.tsv', 'text\tlabel\n' + ''.join(f'"said {t}\tgood\nhe "{t}" said\tbad\n' for t in texts(10))), quotes=False)
    assert len(all_of(task)) == 20 and any(t.startswith('"said') for t, _ in all_of(task).values())
    task = load(save(tmp_path/'a.csv', good + '"a ""quoted"", line\nand another",bad\n'))
    assert ('a "quoted", line\nand another', 'bad') in all_of(task).values()


def test_headers(tmp_path):
    good = csv_of(table(20))
    task = load(save(tmp_path/'a.csv', good + good[good.index('\n') + 1:].replace('1', '2') + 'text,label\n'))
    assert task.skipped == [('row 41', 'the header once more: two files in one?')] and len(all_of(task)) == 40
    refused(lambda: load(save(tmp_path/'a.csv', 'text,label,text\n' + 'a,b,c\n' * 9)), "2 columns 'text'")
    refused(lambda: load(save(tmp_path/'a.csv', good.replace('text,label', 'Text,Lable'))), "no column 'text'", "text='Text'")
    refused(lambda: load(save(tmp_path/'a.csv', good.replace(',label', ',lable'))), "no column 'label'", "label='lable'")
    refused(lambda: load(save(tmp_path/'a.csv', good), group='produkt'), "no column 'produkt'", 'group=')
    refused(lambda: load(save(tmp_path/'a.csv', good[good.index('\n') + 1:])), "no column 'text'")
    assert len(all_of(load(save(tmp_path/'a.csv', good.replace('text,label', ' text , label '))))) == 20


def test_no_table_at_all(tmp_path, monkeypatch):
    refused(lambda: load(tmp_path/'none.csv'), 'no file', 'none.csv'); refused(lambda: load(tmp_path), 'folder')
    refused(lambda: load(save(tmp_path/'a.csv', '')), 'empty'); refused(lambda: load(save(tmp_path/'a.csv', ' \n\r\n')), 'empty')
    refused(lambda: load(save(tmp_path/'a.csv', 'text,label\n')), 'no rows')
    refused(lambda: load(save(tmp_path/'a.csv', '<!DOCTYPE html><p>404')), 'web page')
    refused(lambda: load(save(tmp_path/'a.xlsx', b'PK\3\4' + bytes(90))), 'spreadsheet')
    refused(lambda: load(save(tmp_path/'a.csv.gz', b'\x1f\x8b' + bytes(90))), 'archive'); refused(lambda: load(3), 'int is no table')
    refused(lambda: load(None), 'NoneType')
    refused(lambda: load('a\0b.csv'), 'cannot be opened'); refused(lambda: load(pd.DataFrame()), 'no rows'); refused(lambda: load(table(0)), 'no rows')
    refused(lambda: load(save(tmp_path/'a.parquet', b'PAR1 nonsense')), 'parquet')
    monkeypatch.setattr(pd, 'read_parquet', lambda p: table(30)); assert all_of(load(tmp_path/'a.parquet')) == all_of(load(table(30)))
    for bad, words in (('{"text": 1', ('Line 1',)), ('{"text": "a", "label": 1}\n[1, 2]', ('Line 2', 'object')), ('[' * 100_000, ('Line 1',)), ('nonsense',
            ('Line 1',)), ('{}', ())):
        refused(lambda bad=bad: load(save(tmp_path/'a.jsonl', bad)), *words)


@pytest.mark.skipif(os.name != 'posix' or os.geteuid() == 0, reason='the superuser may read everything')
def test_a_file_that_may_not_be_read(tmp_path):
    path = save(tmp_path/'a.csv', 'text,label\n'); path.chmod(0); refused(lambda: load(path), 'Permission')


# ---------------------------------------------------------------- texts

def test_rows_without_text_or_label_are_listed():
    frame = table(40).astype(object)
    for row, text in enumerate(('', '   ', '\t\n', '\u200b\ufeff', None, float('nan'), pd.NA, '\u00a0\u3000')): frame.loc[row, 'text'] = text
    for row, label in zip(range(8, 14), (None, float('nan'), '', '  ', 'nan', pd.NaT)): frame.loc[row, 'label'] = label
    frame.loc[14, 'text'] = '👍'; frame.loc[15, 'text'] = '...'; frame.loc[16, 'text'] = 10
    task = load(frame)
    assert task.skipped == [(f'row {i + 1}', 'no text' if i < 8 else 'no label') for i in range(14)]
    assert len(all_of(task)) == 26 and {all_of(task)[k][0] for k in ('15', '16', '17')} == {'👍', '...', '10'}
    frame['text'] = ['x'] + [''] * 39
    assert len(refused(lambda: load(frame), '40 rows', 'cannot be used').skipped) == 39
    frame['text'] = ''; refused(lambda: load(frame), 'no text in column')


def test_odd_texts():
    frame = table(); refused(lambda: load(frame.assign(text=range(60))), 'numbers', 'text=')
    for value in (b'bytes', ['list'], {'a': 1}): frame = table().astype(object); frame.at[4, 'text'] = value; refused(lambda frame=frame: load(frame),
            'Row 5', type(value).__name__)
    long = table(); long.loc[0, 'text'] = 'word ' * 100_000
    task = load(long); assert '100,000 words, of which a network reads the first hundred or so' in task.source and 'word ' * 100_000 in [t for t,
            _ in all_of(task).values()]


def test_long_texts_in_files(tmp_path):
    long = table(); long.loc[0, 'text'] = 'word, ' * 100_000
    assert all_of(load(save(tmp_path/'a.csv', csv_of(long)))) == all_of(load(long))


# ---------------------------------------------------------------- labels

def labels(values, classes=None): return read_labels(values, range(1, len(values) + 1), "column 'label'", classes)


@pytest.mark.parametrize('values, classes, names, numbers', [
    (['good', ' Good', 'GOOD\t', 'bad'], None, ['bad', 'GOOD'], [1, 1, 1, 0]), ([1, 0, 1], None, ['0', '1'], [1, 0, 1]), ([1., 0., math.nan], None, ['0',
            '1'], [1, 0, None]),
    (['10', '9', ' 9.0 '], None, ['9', '10'], [1, 0, 0]), ([True, False], None, ['False', 'True'], [1, 0]), (['true', 'False'], None, ['False', 'true'], [1,
            0]),
    ([np.True_, np.False_, None], None, ['False', 'True'], [1, 0, None]), (['★', '★★★★★', '★★☆☆☆'], None, ['1 star', '2 stars', '5 stars'], [0, 2, 1]),
    (['1 star', 5, '5/5', '⭐️⭐️'], None, ['1 star', '2 stars', '5 stars'], [0, 2, 2, 1]), ([1, 3, 5], 'sentiment', ['negative', 'neutral', 'positive'], [0, 1,
            2]),
    ([-1, 0, 1, '+1'], 'sentiment', ['negative', 'neutral', 'positive'], [0, 1, 2, 2]), (['pos', 'Negative', 'NEU'], 'sentiment', ['negative', 'neutral',
            'positive'], [2, 0, 1]),
    (['★★★★', '1 star'], 'sentiment', ['negative', 'positive'], [1, 0]), ([2, 0, 1], ['x', 'y', 'z'], ['x', 'y', 'z'], [2, 0, 1]),
    (['B', 'a'], ['a', 'b', 'c'], ['a', 'b', 'c'], [1, 0]), ([0, 4, 2], {0: 'no', 4: 'yes', 2: None}, ['no', 'yes'], [0, 1, None]),
    (['★', 'meh', 3], {1: 'low', 'MEH': 'low', 3: 'high'}, ['low', 'high'], [0, 0, 1]),
    (['e\u0301', 'é', 'x'], None, ['x', 'é'], [1, 1, 0])])
def test_labels_are_read_as_stated(values, classes, names, numbers):
    got, found, skipped, said = labels(values, classes)
    if names == ['bad', 'GOOD']: names = [names[0], found[1]]; assert found[1].lower() == 'good' and 'read as one' in said
    assert found == names and got == numbers and [r for r, _ in skipped] == [f'row {i + 1}' for i, y in enumerate(got) if y is None]


def test_what_was_read_as_something_else_is_said():
    assert 'read as x, y' in labels([0, 1], ['x', 'y'])[3] and '4 and 5 as positive' in labels(['★', '★★★★★'], 'sentiment')[3] and not labels(['a', 'b'])[3]
    assert "'A' and 'a' read as one" in load(table(classes=('a', 'A', 'b'))).source and 'read as negative, neutral' in load(table(classes=(-1, 0, 1)),
            classes='sentiment').source


@pytest.mark.parametrize('values, classes, words', [
    ([1, 'good'], None, ('mixes', 'row 1', 'row 2')), ([True, 'yes'], None, ('mixes',)), ([True, 2], None, ('mixes',)), (['3 stars', 'fine'], None, ('mixes',)),
    ([.5, 1.25], None, ('measurements', '0.5')), ([math.inf, 1], None, ('measurements',)), (['a', 'A '], None, ('one class', 'telling apart')), ([1], None,
            ('one class',)),
    ([None, 'nan'], None, ('no label',)), ([b'x', 'y'], None, ('Row 1', 'bytes')), ([['x'], 'y'], None, ('Row 1', 'list')),
    (['good', 'godo'], ['good', 'bad'], ('Row 2', "'godo'", "perhaps 'good'")), ([1, 7], {1: 'a', 2: 'b'}, ('Row 2', "'7'")), ([0, 5], ['x', 'y'], ('Row 1',)),
    ([0, 1], 'sentiment', ('sentiment', 'dict')), (['fine', 'bad'], 'sentiment', ("'fine'",)), ([1, 2, 3], 'sentiment', ('cannot tell',)), ([0, 1, 5],
            'sentiment', ()),
    (['a', 'b'], 'sentiments', ("'sentiments'",)), ([f'text {i}' for i in range(50)], None, ('50 different values', 'label='))])
def test_labels_without_a_plain_meaning_are_refused(values, classes, words): refused(lambda: labels(values, classes), *words)


def test_labels_in_files(tmp_path):
    frame = table(40); frame.loc[33, 'label'] = 'godo'
    refused(lambda: load(save(tmp_path/'a.csv', csv_of(frame)), classes=['bad', 'good']), 'Row 34', 'godo')
    refused(lambda: load(save(tmp_path/'a.csv', csv_of(frame))), "'godo'", 'is in 1', 'classes=')
    refused(lambda: load(table(classes=['x'])), 'one class'); assert load(table(classes=[1, 2])).classes == ['1', '2']
    assert as_label('4/10').kind == 'word' and as_label('None').kind == 'word', 'ten is no count of stars here, and None may be a class'


# ---------------------------------------------------------------- copies

def test_copies_and_near_copies():
    assert exported is same_text
    base = 'The lid of this kettle stuck on the very first day and never came off again'
    near = base.replace('kettle', 'pot'); far = 'The lid of that pot broke on my third day and I never bought one again'
    said = [base, base.upper() + '!!!', near, far, 'fine', 'Fine.', 'really fine', '👍', '👍', '👎', '...', '!!!', base + ' ' + ' '.join(texts(3))]
    assert same_text(said) == [0, 0, 0, 3, 4, 4, 6, 7, 7, 9, 10, 11, 12] and same_text(said, near=1) == [0, 0, 2, 3, 4, 4, 6, 7, 7, 9, 10, 11, 12]
    assert same_text([]) == [] and same_text(['works fine on me', 'works fine on you']) == [0, 1], 'short ones are said anew by many'


def test_near_copies_agree_with_comparing_all_pairs():
    rng, pool = random.Random(1), texts(20)
    made = []
    for _ in range(200):
        words = (rng.choice(pool) + ' ' + rng.choice(pool)).split()
        for _ in range(rng.randrange(4)): words[rng.randrange(len(words))] = rng.choice(WORDS)
        made.append(' '.join(words))
    def runs(t): w = t.split(); return {tuple(w[i:i + 3]) for i in range(len(w) - 2)}
    top = list(range(len(made)))
    for i in range(len(made)):
        for j in range(i):
            if len(runs(made[i]) & runs(made[j])) >= .6 * len(runs(made[i]) | runs(made[j])): a, b = sorted((top[i],
                    top[j])); top = [a if t == b else t for t in top]
    assert same_text(made) == top and len(set(top)) < 190


def test_copies_are_the_same_in_every_process():
    code = 'import random; from transfer_course.tasks import same_text; r = random.Random(0)\n'
    code += 'print(same_text([" ".join(r.choices("abcdefg", k=9)) for _ in range(300)]))'
    runs = {subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
            env=os.environ | dict(PYTHONHASHSEED=str(s))).stdout for s in (1, 2)}
    assert len(runs) == 1


def test_copies_never_straddle_splits():
    frame = table(60); again = frame.iloc[:20].assign(text=[t.upper() + '!' for t in frame['text'][:20]])
    both = pd.concat([frame, again], ignore_index=True)
    for seed in range(4):
        task = load(both, seed=seed, test_seed=seed)
        assert len(all_of(task)) == 80 and not task.skipped and '20 of them say what another says' in task.source
        for i in range(20): assert len({s.name for s in task.splits for k in s.ids if k in (str(i + 1), str(i + 61))}) == 1
        grouped = load(both.assign(shop=[i % 17 for i in range(60)] + [20 + i for i in range(20)]), group='shop', seed=seed, test_seed=seed)
        home = {t.lower().rstrip('!'): s.name for s in grouped.splits for t in s.inputs}
        assert all(home[t.lower().rstrip('!')] == s.name for s in grouped.splits for t in s.inputs)
        assert len(grouped.skipped) + len(all_of(grouped)) == 80 and all('copy' in why for _, why in grouped.skipped)
    clash = both.copy(); clash.loc[60, 'label'] = 'bad' if clash.loc[0, 'label'] == 'good' else 'good'
    assert '1 under two labels' in load(clash).source


def test_a_large_table_takes_seconds():
    rng = random.Random(0); many = [' '.join(rng.choices(WORDS, k=20)) + f' {i}' for i in range(5000)]
    start = time.process_time(); load(pd.DataFrame(dict(text=many, label=['a', 'b'] * 2500))); assert time.process_time() - start < 20


# ---------------------------------------------------------------- splits

def shares(task): return np.array([len(s) for s in task.splits]) / sum(len(s) for s in task.splits)


def test_splits_without_groups():
    frame = table(200, ('a', 'a', 'a', 'b'), price=range(200)); task = load(frame)
    assert shares(task).round(3).tolist() == [.6, .2, .2] and len(all_of(task)) == 200 and set(task.train.extra) == {'price'}
    assert task.counts().loc['b'].tolist() == [30, 10, 10] and 'copies kept together' in task.source and '150 a, 50 b' in task.source
    for s in task.splits:
        for i, t, y, price, g in zip(s.ids, s.inputs, s.labels, s.extra['price'], s.groups):
            assert frame['text'][int(i) - 1] == t and frame['label'][int(i) - 1] == task.classes[y] and price == int(i) - 1 and g == i
    other = load(frame, seed=1)
    assert other.test.ids == task.test.ids and set(other.valid.ids) != set(task.valid.ids) and set(load(frame, test_seed=1).test.ids) != set(task.test.ids)
    assert [s.ids for s in load(frame).splits] == [s.ids for s in task.splits]
    small = load(frame, n_train=20, valid=10, test=12)
    assert [len(s) for s in small.splits] == [20, 10, 12] and small.train.ids == load(frame, valid=10, test=12).train.ids[:20]
    assert set(load(frame, n_train=20).train.ids) == set(task.budget(20).train.ids) < set(task.budget(40).train.ids)


def grouped_frame(groups=60, seed=0):
    rng = np.random.default_rng(seed); sizes = rng.integers(1, 30, groups)
    g = np.repeat(np.arange(groups), sizes)
    return pd.DataFrame(dict(text=texts(len(g), seed), label=rng.choice(['a', 'b', 'c'], len(g), p=[.6, .3, .1]), shop=[f'shop {i}' for i in g]))


def test_groups_stay_together_and_shares_are_met():
    frame, tests = grouped_frame(), []
    for seed in range(5):
        task = load(frame, group='shop', seed=seed, test_seed=seed); tests.append(frozenset(task.test.ids))
        homes = [set(s.groups) for s in task.splits]
        assert not homes[0] & homes[1] | homes[0] & homes[2] | homes[1] & homes[2] and len(all_of(task)) == len(frame)
        assert np.abs(shares(task) - [.6, .2, .2]).max() < .03 and (task.counts() / task.counts().sum()).std(axis=1).max() < .05
        for s in task.splits: assert all(frame['shop'][int(i) - 1] == g for i, g in zip(s.ids, s.groups))
        assert "split by column 'shop'" in task.source
        sizes = frame['shop'].value_counts(); assert abs(sizes[list(homes[2])].mean() - sizes.mean()) < 5, 'long groups are not favoured'
    assert len(set(tests)) == 5
    assert load(frame, group='shop', seed=3).test.ids == load(frame, group='shop').test.ids


def test_numbers_are_exact_with_groups_too():
    frame = grouped_frame(); task = load(frame, group='shop', n_train=100, valid=50, test=77)
    assert [len(s) for s in task.splits] == [100, 50, 77] and (task.counts() > 0).all(axis=None)
    homes = [set(s.groups) for s in task.splits]; assert not homes[0] & homes[1] | homes[0] & homes[2] | homes[1] & homes[2]
    before = set()
    for n in (3, 10, 50, 100): now = set(load(frame, group='shop', n_train=n, valid=50, test=77).train.ids); assert before < now; before = now
    assert before == set(task.train.ids)


def test_few_groups():
    frame = table(60)
    refused(lambda: load(frame.assign(g='all'), group='g'), "Column 'g'", '1 group,', 'three at least')
    refused(lambda: load(frame.assign(g=['x', 'y'] * 30), group='g'), '2 groups')
    refused(lambda: load(frame.assign(g=[i % 2 * (i % 5) for i in range(60)]), group='g'), "Class 'bad'", 'is in 1 of the groups')
    task = load(frame.assign(g=[i // 20 for i in range(60)]), group='g'); assert [len(s) for s in task.splits] == [20, 20, 20]
    most = load(frame.assign(g=[min(i // 2, 5) for i in range(60)]), group='g'); assert len(most.train) >= 50 and '5' in most.train.groups
    skew = frame.assign(g=[i % 3 for i in range(60)], label=['a'] * 30 + ['b'] * 30); assert (load(skew, group='g').counts() > 0).all(axis=None)


def test_rows_without_a_group_stand_alone(tmp_path):
    frame = grouped_frame().astype(object); frame.loc[:9, 'shop'] = None; frame.loc[10:12, 'shop'] = ' '
    task = load(frame, group='shop'); assert '13 rows without a group stand alone' in task.source and 'row 1' in sum((s.groups for s in task.splits), [])
    numbers = grouped_frame(); numbers['shop'] = numbers['shop'].str[5:].astype(float)
    a, b = load(numbers, group='shop'), load(save(tmp_path/'a.csv', csv_of(numbers.assign(shop=numbers['shop'].astype(int)))), group='shop')
    assert a.test.ids == b.test.ids and a.test.groups == b.test.groups


def test_sizes_that_cannot_be(tmp_path):
    frame = table(60)
    refused(lambda: load(frame, n_train=59), '59', 'train'); refused(lambda: load(frame, n_train=1), 'at least one a class')
    refused(lambda: load(frame, test=61), '61 texts', '60')
    for bad in (1.5, 0., -1, True, '5', math.nan): refused(lambda bad=bad: load(frame, test=bad)); refused(lambda bad=bad: load(frame, valid=bad))
    for bad in (-1, 1.5, None): refused(lambda bad=bad: load(frame, seed=bad)); refused(lambda bad=bad: load(frame, test_seed=bad))
    for bad in (0, 1.5, True, -1): refused(lambda bad=bad: load(frame, near=bad), 'near')
    refused(lambda: load(frame, test=50), 'take 62 of the 60'); refused(lambda: load(grouped_frame(5), group='shop', test=.97))
    refused(lambda: load(pd.DataFrame(dict(text=['same'] * 30, label=['a', 'b'] * 15))), 'is in 1 of the different texts')


def test_rare_classes_reach_every_split():
    frame = table(100, ('a',)); frame['label'] = ['b'] * 3 + ['a'] * 97
    assert load(frame).counts().loc['b'].tolist() == [1, 1, 1]
    frame['label'] = ['b'] * 2 + ['a'] * 98; refused(lambda: load(frame), "'b'", 'is in 2')


def test_whole_groups_says_when_there_is_no_choice():
    assert whole_groups([0, 1], ['x', 'x'], 1, 0) is None and whole_groups([0, 1, 0, 1], list('aabb'), 2, 0).sum() == 2
    assert whole_groups([0, 1] * 3, list('aabbcc'), 2, 0, left=2).sum() == 2 and whole_groups([0, 1] * 2, list('aabb'), 2, 0, left=2) is None


def test_columns_that_are_numbers_and_indexes_that_are_not():
    frame = pd.DataFrame({0: texts(30), 1: ['a', 'b'] * 15}, index=[f'r{i}' for i in range(30)])
    task = load(frame, text=0, label=1); assert len(all_of(task)) == 30 and frame.columns.tolist() == [0,
            1] and frame.index[0] == 'r0', 'the frame given is as it was'
    assert load(table(30).astype(dict(label='category'))).classes == ['bad', 'good'] and load(table(30).convert_dtypes()).classes == ['bad', 'good']


def test_the_table_is_read_only_once_and_rows_count_from_one(tmp_path):
    frame, where, skipped = read_table(save(tmp_path/'a.csv', csv_of(table(5))))
    assert frame.index.tolist() == [1, 2, 3, 4, 5] and where == f"'{tmp_path/'a.csv'}'" and texts_of(frame, where, 'text',
            'label').ids == list('12345') and not skipped


# ---------------------------------------------------------------- what readers of the code found

def saved(path, text, **more):
    path.write_bytes(text if isinstance(text, bytes) else text.encode()); return lambda: from_table(path, verbose=False, **more)


def test_whole_numbers_keep_every_digit():
    rows = pd.DataFrame(dict(text=[f'text number {i} of so many' for i in range(60)], label=['900000000000000001', '900000000000000002', '5'] * 20))
    assert from_table(rows, verbose=False, near=1).classes == ['5', '900000000000000001', '900000000000000002']
    codes = from_table(rows.assign(label=['4006381333931', '4006381333932', '5'] * 20), verbose=False, near=1).classes
    assert codes == ['5', '4006381333931', '4006381333932']
    mixed = rows.assign(label=[5, 5., '5', 6, '6.0', 6.] * 10); assert from_table(mixed, verbose=False, near=1).classes == ['5', '6']
    assert as_label('007').name == '7' and as_label(np.int64(2**62 + 1)).name == str(2**62 + 1) and as_label('2.50').name == '2.5'


def test_quotes_that_swallow_rows_are_told(tmp_path):
    lines = ['text\tlabel'] + [f'{chr(34) if i == 5 else ""}row {i} says this{chr(34) if i == 45 else ""}\t{"ab"[i % 2]}' for i in range(60)]
    refused(saved(tmp_path/'t.tsv', '\n'.join(lines)), 'line 7', 'looks like rows of its own', 'quotes=False')
    assert sum(map(len, saved(tmp_path/'t.tsv', '\n'.join(lines), quotes=False, near=1)().splits)) == 60
    letters = ['text,label'] + [f'"Dear sir,\nyour {i} came late.\nIt works, though.\nYours, me",{"ab"[i % 2]}' for i in range(40)]
    assert sum(map(len, saved(tmp_path/'letters.csv', '\n'.join(letters), near=1)().splits)) == 40, 'a letter with commas is no row'


def test_odd_files_and_arguments_are_one_sentence(tmp_path):
    good = 'text,label\n' + '\n'.join(f'sentence number {i} of them,{"ab"[i % 2]}' for i in range(40))
    assert len(saved(tmp_path/'bom.csv', b'\xef\xbb\xbf' + good.encode(), encoding='utf-8', near=1)().train) == 24
    for text in (b'\xef\xbb\xbf', ',,\n,,\n'): refused(saved(tmp_path/'e.csv', text), 'is empty')
    for sep in ('||', 5): refused(saved(tmp_path/'g.csv', good, sep=sep), 'sep is', 'one character')
    refused(saved(tmp_path/'g.csv', good, encoding=5), "encoding is '5'")
    for classes in ({'a', 'b'}, 2): refused(saved(tmp_path/'g.csv', good, classes=classes), 'whose order counts')
    import csv; assert csv.field_size_limit() == 131072, 'a table that is refused leaves the limit as it was'
    same = pd.DataFrame(dict(text=['one and', 'two and', 'three and', 'four and'] * 4, label=['a', 'b'] * 8, g=[i // 4 for i in range(16)]))
    refused(lambda: from_table(same, group='g', verbose=False))


def test_accents_written_in_two_ways_are_the_same_text_and_group():
    import unicodedata
    texts = [f'điều {i} này rất tốt và đẹp số {i * i}' for i in range(30)]; both = [unicodedata.normalize(f, t) for t in texts for f in ('NFC', 'NFD')]
    assert same_text(both, 1) == [i // 2 * 2 for i in range(60)] and same_text(both) == same_text(both, 1)
    rows = pd.DataFrame(dict(text=[f'text {i} of José' for i in range(60)], label=['a', 'b'] * 30,
                             g=[unicodedata.normalize(('NFC', 'NFD')[i % 2], f'José {i // 6}') for i in range(60)]))
    task = from_table(rows, group='g', verbose=False, near=1); assert len({g for s in task.splits for g in s.groups}) == 10
    lost = from_table(rows.assign(g=['NA'] * 30 + [f'g{i}' for i in range(30)]), group='g', verbose=False, near=1)
    assert '30 rows without a group stand alone' in lost.source


def test_near_copies_are_those_of_comparing_every_pair_under_every_key():
    "Comparing each pair once, and by sizes, finds what comparing all of them did."
    from transfer_course.backstage.tables import _runs
    rng = random.Random(0); words = [f'w{i}' for i in range(40)]
    texts = [' '.join(rng.choice(words) for _ in range(12)) for _ in range(30)]; texts += [t.rsplit(' ', rng.randrange(1, 5))[0] for t in texts] + texts[:5]
    first, top, filed = {}, [], {}
    for i, t in enumerate(texts): top.append(first.setdefault(t, i))
    def root(i): return i if top[i] == i else root(top[i])
    for i in sorted(set(top)):
        mine = _runs(texts[i].split())
        for key in sorted(mine)[:8]:
            for j in filed.setdefault(key, []):
                theirs = _runs(texts[j].split()); a, b = sorted((root(i), root(j)))
                if len(mine & theirs) >= .6 * len(mine | theirs): top[b] = a
            filed[key].append(i)
    assert same_text(texts) == [root(i) for i in range(len(texts))] and 30 <= len(set(same_text(texts))) < 55
