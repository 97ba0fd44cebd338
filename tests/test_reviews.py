"The two sets of reviews: the course's own, and those that twenty people each have rated."
import hashlib, os, subprocess, sys, tarfile, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from transfer_course.backstage import measurements, review_files
from transfer_course.backstage.downloads import fetch
from transfer_course.backstage.review_files import ARCHIVE, ELSEWHERE, MEMBER, SHA256, SIZE, find_archive, product_of, rated_texts
from transfer_course.tasks import TaskError, load_reviews

DATA = Path(os.environ.get('TRANSFER_COURSE_DATA') or Path(__file__).resolve().parents[2]/'shared'/'data')


@pytest.fixture(scope='session')
def real():
    "The folder with the real archive, or skip."
    if not (DATA/'reviews'/ARCHIVE).is_file(): pytest.skip(f'{ARCHIVE} is not here: put it into ../shared/data/reviews or set TRANSFER_COURSE_DATA')
    return DATA/'reviews'


def refused(call, *words):
    with pytest.raises(TaskError) as info: call()
    text = str(info.value)
    assert '\n' not in text and text.endswith('.') and len(text) < 600 and info.value.__cause__ is None, text
    for word in words: assert word in text, f'{word!r} is missing in: {text}'
    return text


def apart(task):
    homes = [set(s.groups) for s in task.splits]
    return not homes[0] & homes[1] | homes[0] & homes[2] | homes[1] & homes[2]


# ---------------------------------------------------------------- written

def test_written_reviews(capsys):
    task = load_reviews()
    assert task.source in capsys.readouterr().out and task.kind == 'texts' and task.classes == ['negative', 'neutral',
            'positive'] and task.name == 'written reviews'
    n = np.array([len(s) for s in task.splits]); share = n / n.sum()
    assert n.sum() >= 150 and np.abs(share - [.6, .2, .2]).max() < .05 and not task.skipped
    assert apart(task) and len({g for s in task.splits for g in s.groups}) >= 10
    for s in task.splits:
        assert all(isinstance(t, str) and t.strip() for t in s.inputs) and set(s.extra) >= {'product', 'category', 'style'} and s.extra['product'] == s.groups
        assert np.bincount(s.labels, minlength=3).min() / len(s) > .25, 'balanced'
    for c in task.classes: assert c in task.source
    load_reviews(verbose=False); assert capsys.readouterr().out == ''


def test_written_reviews_hold_no_copies():
    task = load_reviews(verbose=False); assert 'say what another says' not in task.source


def test_test_is_the_same_for_every_seed_but_not_for_every_test_seed():
    a, b, c = (load_reviews(seed=s, test_seed=t, verbose=False) for s, t in ((0, 0), (1, 0), (0, 1)))
    assert a.test.ids == b.test.ids and set(a.train.ids) != set(b.train.ids) and set(a.test.groups) != set(c.test.groups)
    assert [s.ids for s in load_reviews(verbose=False).splits] == [s.ids for s in a.splits]


def test_sizes_and_budgets():
    full, small = load_reviews(verbose=False), load_reviews(n_train=30, n_valid=12, n_test=15, verbose=False)
    assert [len(s) for s in small.splits] == [30, 12, 15] and apart(small)
    assert set(load_reviews(n_train=30, verbose=False).train.ids) == set(full.budget(30).train.ids) < set(full.budget(60).train.ids)
    assert full.budget(30).counts()['train'].tolist() == [10, 10, 10]
    refused(lambda: load_reviews(n_train=10**6), '1,000,000'); refused(lambda: load_reviews(n_train=2), 'at least one a class')


def test_groups_and_names():
    assert set(load_reviews(group='category', verbose=False).train.groups) <= set(load_reviews(verbose=False).train.extra['category']) | set(
        load_reviews(verbose=False).valid.extra['category']) | set(load_reviews(verbose=False).test.extra['category'])
    refused(lambda: load_reviews('yelp'), "'yelp'", "'amazon'"); refused(lambda: load_reviews(group='colour'), "'colour'", "'category'")
    refused(lambda: load_reviews(seed=-1), 'seed'); assert load_reviews(verbose=False).show(2).axes[0].texts


def test_reviews_are_light():
    code = "import sys, transfer_course.tasks; print([m for m in ('torch', 'pandas', 'sklearn', 'transformers', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


# ---------------------------------------------------------------- amazon, from an archive of our own words

LINES = [f'{r}_{i}\t{rating}\tsentence {i} of review {r} says {word}.' for r in (*range(1, 9), 99, 150, 180, 300)
         for i, (rating, word) in enumerate([(-.5, 'bad'), (-.45, 'hm'), (.45, 'well'), (.5, 'nice'), (3, 'wow'), (-3.2, 'ugh')], 1)]
def numbered(place, i): return f'{1 + i // 6}_{1 + i % 6}' if place == 'editorials' else i + 1


PLACES = {place: [f'{numbered(place, i)}\t{(-2, -.5, 0, .4, .5, 3)[i % 6]}\t{place} say &amp; mean {i}{"abc"[i % 3]}!'
                  for i in range(60)] for place in ELSEWHERE}


@pytest.fixture
def archive(tmp_path, monkeypatch):
    "A small archive that the course takes for the real one."
    inner = tmp_path/'make'/Path(MEMBER).name; inner.parent.mkdir(); inner.write_bytes('\r\n'.join(LINES).encode())
    with tarfile.open(tmp_path/'make'/ARCHIVE, 'w:gz') as tar:
        tar.add(inner, MEMBER)
        for place, file in ELSEWHERE.items():
            inner.write_bytes('\r\n'.join(PLACES[place]).encode()); tar.add(inner, f'hutto_ICWSM_2014/{file}_GroundTruth.txt')
    path = tmp_path/'make'/ARCHIVE
    monkeypatch.setattr(review_files, 'SHA256', hashlib.sha256(path.read_bytes()).hexdigest()); monkeypatch.setattr(review_files, 'SIZE', path.stat().st_size)
    return path


def test_ratings_become_classes_and_reviews_stay_together(archive):
    task = load_reviews('amazon', root=archive.parent, download=False, verbose=False)
    rows = {i: (t, task.classes[y], r) for s in task.splits for i, t, y, r in zip(s.ids, s.inputs, s.labels, s.extra['rating'])}
    assert rows['1_1'] == ('sentence 1 of review 1 says bad.', 'negative', -.5) and [rows[f'99_{i}'][1] for i in range(1, 7)] == [
        'negative', 'neutral', 'neutral', 'positive', 'positive', 'negative']
    assert apart(task) and all(i.split('_')[0] == g for s in task.splits for i, g in zip(s.ids, s.groups)) and len(rows) == 72
    assert dict(zip(*[sum((s.extra[k] for s in task.splits), []) for k in ('review', 'product')])) == {
        **{str(r): 'Apex AD2600 DVD player' for r in range(1, 9)}, '99': 'Canon G3 camera', '150': 'Nikon Coolpix 4300 camera', '180': 'Nokia 6610 phone',
        '300': 'Creative Nomad Jukebox Zen Xtra player'}
    by = load_reviews('amazon', group='product', root=archive.parent, download=False, verbose=False)
    assert by.test.groups == by.test.extra['product'] and apart(by)
    refused(lambda: load_reviews('amazon', group='style', root=archive.parent), "'style'")


def test_sentences_rated_elsewhere(archive):
    def load(which, **more): return load_reviews(which, root=archive.parent, download=False, verbose=False, **more)
    for which in ELSEWHERE:
        task = load(which); rows = {i: (t, task.classes[y], r) for s in task.splits for i, t, y, r in zip(s.ids, s.inputs, s.labels, s.extra['rating'])}
        assert len(rows) == 60 and apart(task) and task.name == f'sentences of {which}' and {p for s in task.splits for p in s.extra['place']} == {which}
        first = f'{which} 1_1' if which == 'editorials' else f'{which} 1'; assert rows[first] == (f'{which} say & mean 0a!', 'negative', -2)
        assert [rows[i][1] for i in list(sorted(rows, key=lambda i: [int(x) for x in i.split(' ')[1].split('_')]))[:6]] == [
            'negative', 'negative', 'neutral', 'neutral', 'positive', 'positive']
        if which == 'editorials': assert all(i.split('_')[0] == g for s in task.splits for i, g in zip(s.ids, s.groups)) and len(set(task.train.groups)) < 10
        refused(lambda w=which: load(w, group='product'), "'product'", 'leave group out')
    both = load('elsewhere', spread=.5)
    assert sum(map(len, both.splits)) == 180 and set(both.train.extra['place']) == set(ELSEWHERE) and both.train.shares is not None and apart(both)
    assert {i for s in both.splits for i in s.ids} == {i for w in ELSEWHERE for s in load(w).splits for i in s.ids}


def test_sides_that_a_network_is_asked_for(archive):
    "Only negative and positive sentences, the same for whoever asks; of other places none that a product review says too."
    def sides(*names, most=None): return {name: (texts, truth) for name, texts, truth in measurements._sides(archive.parent, names, most)}
    task = load_reviews('amazon', root=archive.parent, verbose=False); said = {t: task.classes[y] for s in task.splits for t, y in zip(s.inputs, s.labels)}
    texts, truth = sides('amazon')['amazon']
    assert {t: ('negative', 'positive')[y] for t, y in zip(texts, truth)} == {t: c for t, c in said.items() if c != 'neutral'} and set(truth) == {0, 1}
    (films, answers), few = sides('films')['films'], sides('films', most=7)['films']
    assert len(films) == 40 and len(few[0]) == 7 and few[0] == sides('films', most=7)['films'][0]
    assert all(answers[films.index(t)] == y for t, y in zip(*few)) and set(few[1]) == {0, 1}
    assert measurements._not_of_products([*films, f'  {texts[0].upper()} '], archive.parent) == list(range(40))


def test_archive_is_looked_for_and_never_replaced(archive, tmp_path, monkeypatch):
    assert find_archive(archive.parent, False) == archive
    (tmp_path/'reviews').mkdir(); archive.rename(tmp_path/'reviews'/ARCHIVE); assert find_archive(tmp_path, False) == tmp_path/'reviews'/ARCHIVE
    monkeypatch.setenv('TRANSFER_COURSE_CACHE', str(tmp_path)); assert find_archive() == tmp_path/'reviews'/ARCHIVE
    empty = tmp_path/'empty'
    refused(lambda: load_reviews('amazon', root=empty, download=False), 'download=True', "load_reviews('written')"); assert not empty.exists()
    empty.mkdir(); (empty/ARCHIVE).write_bytes(b'another version')
    for download in (False, True): refused(lambda d=download: load_reviews('amazon', root=empty, download=d), 'move it away', "load_reviews('written')")
    assert (empty/ARCHIVE).read_bytes() == b'another version'


class Web(BaseHTTPRequestHandler):
    def log_message(self, *words): pass
    def do_GET(self):
        body = self.server.body; self.server.asked.append(self.path)
        self.send_response(200 if body else 404); self.send_header('Content-Length', len(body)); self.end_headers(); self.wfile.write(body)


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1'); monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    s = ThreadingHTTPServer(('127.0.0.1', 0), Web); s.body, s.asked = b'', []
    threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=.01), daemon=True).start()
    monkeypatch.setattr(review_files, 'ADDRESS', f'http://127.0.0.1:{s.server_port}/{ARCHIVE}')
    yield s
    s.shutdown(); s.server_close()


def test_download_once_then_from_the_folder(archive, web, tmp_path, capsys):
    web.body = archive.read_bytes(); root = tmp_path/'new'
    first = load_reviews('amazon', root=root); assert 'Fetching' in capsys.readouterr().out
    again = load_reviews('amazon', root=root); assert 'Fetching' not in capsys.readouterr().out
    assert web.asked == [f'/{ARCHIVE}'] and [s.ids for s in first.splits] == [s.ids for s in again.splits] and [p.name for p in root.iterdir()] == [ARCHIVE]


def test_a_failed_download_is_no_other_task(archive, web, tmp_path, monkeypatch):
    text = refused(lambda: load_reviews('amazon', root=tmp_path/'new', verbose=False), '404', ARCHIVE, "load_reviews('written')"); assert 'sha' not in text
    monkeypatch.setattr(review_files, 'fetch', lambda *a, **k: fetch(*a, **k | dict(wait=.01)))
    web.body = bytes(archive.stat().st_size)
    refused(lambda: load_reviews('amazon', root=tmp_path/'new', verbose=False), 'another file'); assert not list((tmp_path/'new').iterdir())


def test_an_archive_that_means_harm(tmp_path, monkeypatch):
    "Its sha256 would be wrong; even if it were right, nothing is followed."
    path = tmp_path/ARCHIVE; (tmp_path/'secret').write_text('1_1\t1\tsecret')
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        with tarfile.open(path, 'w:gz') as tar:
            up = tarfile.TarInfo('../outside'); up.size = 0; tar.addfile(up)
            link = tarfile.TarInfo(MEMBER); link.type, link.linkname = kind, str(tmp_path/'secret'); tar.addfile(link)
        refused(lambda: load_reviews('amazon', root=tmp_path, download=False), 'move it away')
        monkeypatch.setattr(review_files, 'SHA256', hashlib.sha256(path.read_bytes()).hexdigest())
        monkeypatch.setattr(review_files, 'SIZE', path.stat().st_size)
        refused(lambda: load_reviews('amazon', root=tmp_path, download=False), 'link or a device'); assert not (tmp_path.parent/'outside').exists()


@pytest.mark.parametrize('line', ['no tabs', '1_1\tnice\ttext', 'x\t1\ttext', '1_1\t1\ttext\tmore', ''])
def test_lines_of_another_form(line):
    if line: refused(lambda: rated_texts(f'1_1\t1\tgood\n{line}\n'.encode(), where='the file'), 'Line 2 of the file')
    else: assert len(rated_texts(b'1_1\t1\tgood')) == 1


# ---------------------------------------------------------------- amazon, real

def test_the_real_archive(real):
    task = load_reviews('amazon', root=real, download=False, verbose=False)
    n = sum(len(s) for s in task.splits)
    assert n + len(task.skipped) == 3708 and all('copy' in why for _, why in task.skipped) and len(task.skipped) < 40
    assert np.abs(np.array([len(s) for s in task.splits]) / n - [.6, .2, .2]).max() < .02 and apart(task)
    for s in task.splits:
        rating = np.array(s.extra['rating']); assert np.array_equal(s.labels, np.select([rating <= -.5, rating >= .5], [0, 2],
                1)) and all(t.strip() for t in s.inputs)
        assert all(i.split('_')[0] == g == r for i, g, r in zip(s.ids, s.groups, s.extra['review']))
    share = task.counts() / task.counts().sum(); assert share.std(axis=1).max() < .02
    assert load_reviews('amazon', root=DATA, download=False, verbose=False).test.ids == task.test.ids, 'found one folder below too'
    assert len({frozenset(load_reviews('amazon', root=real, test_seed=s, verbose=False).test.ids) for s in range(5)}) == 5


def test_the_real_archive_has_sentences_from_elsewhere(real):
    "A few exclamations are all that they share with the product reviews; `measurements amazon` leaves those out."
    sizes = {}
    ours = {' '.join(t.lower().split()) for s in load_reviews('amazon', root=real, download=False, verbose=False).splits for t in s.inputs}
    for which in ELSEWHERE:
        task = load_reviews(which, root=real, download=False, verbose=False); sizes[which] = sum(map(len, task.splits)) + len(task.skipped)
        both = ours & {' '.join(t.lower().split()) for s in task.splits for t in s.inputs}
        assert apart(task) and len(both) < 5 and all(len(t.split()) < 5 for t in both), both
        assert len(task.skipped) < 150 and len({g for s in task.splits for g in s.groups}) > (400 if which == 'editorials' else 3000)
    assert sizes == dict(films=10605, tweets=4200, editorials=5190)


def test_products_of_the_real_archive_are_told_by_their_words(real):
    "The borders between products, checked by words that only one of them has."
    task = load_reviews('amazon', root=real, group='product', download=False, verbose=False)
    said = {}
    for s in task.splits:
        for t, p in zip(s.inputs, s.extra['product']): said.setdefault(p, []).append(t)
    assert len(said) == 5
    for product, word in {'Apex AD2600 DVD player': 'apex', 'Canon G3 camera': 'g3', 'Nikon Coolpix 4300 camera': 'coolpix', 'Nokia 6610 phone': '6610',
                          'Creative Nomad Jukebox Zen Xtra player': 'nomad'}.items():
        counts = {p: sum(word in t.lower().split() for t in texts) for p, texts in said.items()}
        assert counts[product] >= .8 * sum(counts.values()) > 0, (word, counts)


def test_the_address_is_pinned():
    commit = review_files.ADDRESS.split('/')[5]
    assert len(commit) == 40 and set(commit) <= set('0123456789abcdef') and review_files.ADDRESS.startswith('https://raw.githubusercontent.com/cjhutto/vaderSentiment/')
    assert SHA256.startswith('d5bb07d8') and SIZE == 2_338_514 and product_of(1) == product_of(98) != product_of(99)
