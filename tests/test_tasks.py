"Tasks from drawings, folders and photographs: splits without leaks, and a sentence for every kind of bad input."
import contextlib, functools, hashlib, http.server, io, os, pickle, shutil, socket, struct, subprocess, sys, tarfile, tempfile, threading
import warnings, zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from transfer_course.backstage import pictures as files
from transfer_course.tasks import Split, Task, TaskError, from_folder, load_pets, read_picture, same_bytes, stratified_order

DATA = Path(os.environ.get('TRANSFER_COURSE_DATA') or Path(__file__).resolve().parents[2]/'shared'/'data')


def need(name):
    "A folder of real pictures, or skip."
    if not (DATA/name).is_dir(): pytest.skip(f'{name} is not here: put it into ../shared/data or set TRANSFER_COURSE_DATA')
    return DATA/name


def noise(seed, side=24): return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8))


def make(root, classes=('cat', 'dog'), n=20, parts=('',), start=0):
    "A folder of small, different pictures: n of each class in each part."
    for part in parts:
        for name in classes:
            (root/part/name).mkdir(parents=True, exist_ok=True)
            for i in range(n): start += 1; noise(start).save(root/part/name/f'{i}.png')
    return root


load = functools.partial(from_folder, size=16, verbose=False)


def refused(call, *words):
    "The message of the TaskError that `call` raises: one sentence that has the words, and hides where Pillow stumbled."
    with pytest.raises(TaskError) as info: call()
    text = str(info.value)
    assert '\n' not in text and text.endswith('.') and len(text) < 600, text
    assert info.value.__cause__ is None and (info.value.__context__ is None or info.value.__suppress_context__)
    for word in words: assert word in text, f'{word!r} is missing in: {text}'
    return info.value


def parts_of(task, name): return {s.name for s in task.splits if any(name == i for i in s.ids)}


# ---------------------------------------------------------------- the package

def test_tasks_are_light():
    code = "import sys, transfer_course.tasks; print([m for m in ('torch', 'torchvision', 'pandas', 'matplotlib', 'sklearn') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


# ---------------------------------------------------------------- splits

def test_splits_are_disjoint_complete_and_stratified(tmp_path):
    task = load(make(tmp_path/'a', n=20, start=0) and make(tmp_path/'a', classes=('cow',), n=40, start=500))
    assert task.classes == ['cat', 'cow', 'dog'] and task.kind == 'pictures'
    ids = [i for s in task.splits for i in s.ids]
    assert len(ids) == len(set(ids)) == 80 and task.counts().to_numpy().sum() == 80
    assert task.counts()['test'].tolist() == [4, 8, 4] == task.counts()['valid'].tolist()
    for s in task.splits:
        assert s.inputs.shape == (len(s), 16, 16, 3) and s.inputs.dtype == np.uint8 and s.labels.dtype == np.int64
        for i, y, picture in zip(s.ids, s.labels, s.inputs):
            assert i.startswith(task.classes[y] + '/') and np.array_equal(picture, read_picture(tmp_path/'a'/i, 16))


def test_seed_changes_train_and_valid_and_never_test(tmp_path):
    a, same, b = (load(make(tmp_path/'p'), seed=seed) for seed in (0, 0, 1))
    for s, t in zip(a.splits, same.splits): assert s.ids == t.ids and np.array_equal(s.inputs, t.inputs)
    assert a.test.ids == b.test.ids and a.train.ids != b.train.ids and set(a.valid.ids) != set(b.valid.ids)


def test_order_depends_on_names_only():
    labels, ids = np.array([0] * 30 + [1] * 10), [f'f{i}' for i in range(40)]
    order, mixed = stratified_order(labels, ids, 3), np.random.default_rng(0).permutation(40)
    again = mixed[stratified_order(labels[mixed], [ids[i] for i in mixed], 3)]
    assert again.tolist() == order.tolist() and stratified_order(labels, ids, 4).tolist() != order.tolist()
    for k in range(2, 41): assert abs((labels[order[:k]] == 1).sum() - k / 4) <= 1 and len(set(labels[order[:k]])) == 2
    assert len(stratified_order([], [])) == 0


def test_budgets_are_nested_stratified_and_leave_the_rest_alone(tmp_path):
    task = load(make(tmp_path))
    before = set()
    for n in range(2, len(task.train) + 1):
        small = task.budget(n, seed=5)
        assert before < set(small.train.ids) and len(small.train) == n
        assert abs(np.diff(small.counts()['train']).item()) <= 1 and small.valid is task.valid and small.test is task.test
        before = set(small.train.ids)
    assert set(task.budget(8).train.ids) != set(task.budget(8, seed=1).train.ids)
    part = task.budget(8).train
    for i, picture in zip(part.ids, part.inputs): assert np.array_equal(picture, task.train.inputs[task.train.ids.index(i)])
    refused(lambda: task.budget(25), '25', '24', 'fewer'); refused(lambda: task.budget(1), 'class')
    for bad in (2.5, '3', None, True, -1): refused(lambda bad=bad: task.budget(bad), repr(bad))


def test_n_train_is_nested_and_equals_the_budget(tmp_path):
    full = load(make(tmp_path))
    for n in (2, 7, 24):
        small = load(tmp_path, n_train=n)
        assert small.train.ids == full.train.ids[:n] and small.valid.ids == full.valid.ids and small.test.ids == full.test.ids
        assert set(small.train.ids) == set(full.budget(n, seed=0).train.ids)


def test_only_what_is_used_is_decoded(tmp_path, monkeypatch):
    opened, real = [], files.try_picture
    monkeypatch.setattr(files, 'try_picture', lambda path, size: opened.append(path) or real(path, size))
    load(make(tmp_path, n=40), n_train=6, valid=4, test=10)
    assert len(opened) == len(set(opened)) == 20


def test_files_of_one_length_are_the_only_ones_read_for_copies(tmp_path, monkeypatch):
    for i in range(5): (tmp_path/str(i)).write_bytes(b'x' * i)
    read, real = [], Path.read_bytes
    monkeypatch.setattr(Path, 'read_bytes', lambda p: read.append(p) or real(p))
    assert same_bytes([tmp_path/str(i) for i in range(5)], progress=False) == list(range(5)) and not read


@pytest.mark.parametrize('given, own', [(('train', 'test'), 'test'), (('train', 'validation'), 'valid'), (('train', 'val', 'test'), 'test valid'),
                                        (('Train', 'valid', 'TEST'), 'test valid'), (('training_set', 'test_set'), 'test'), (('train',), '')])
def test_layouts(tmp_path, given, own):
    task = load(make(tmp_path, parts=given))
    for s in task.splits:
        homes = {i.split('/')[0] for i in s.ids}
        assert len(homes) == 1 and len(s)
        if s.name in own: assert files.PARTS[homes.pop().lower()] == s.name and len(s) == 40
        elif s.name != 'train': assert homes.pop().lower().startswith('train') and len(s) == 8
    assert load(tmp_path, seed=1).test.ids == task.test.ids


def test_a_class_may_be_called_test(tmp_path):
    assert load(make(tmp_path, classes=('control', 'other', 'test'))).classes == ['control', 'other', 'test']


def test_copies_stay_in_one_split(tmp_path):
    make(tmp_path, n=30)
    for i in range(0, 30, 2):
        for k in range(2): shutil.copy(tmp_path/f'cat/{i}.png', tmp_path/f'cat/{i} ({k}).png')
    for seed in range(4):
        task = load(tmp_path, seed=seed)
        assert sum(map(len, task.splits)) == 90 and not task.skipped
        for i in range(0, 30, 2): assert len({s for name in (f'{i}', f'{i} (0)', f'{i} (1)') for s in parts_of(task, f'cat/{name}.png')}) == 1
        of = {g: s.name for s in task.splits for g in s.groups}
        assert all(of[g] == s.name for s in task.splits for g in s.groups)


def test_a_copy_of_a_test_picture_leaves_train(tmp_path):
    make(tmp_path, parts=('train', 'valid', 'test'))
    shutil.copy(tmp_path/'test/cat/1.png', tmp_path/'train/cat/x.png'); shutil.copy(tmp_path/'test/cat/1.png', tmp_path/'valid/cat/y.png')
    shutil.copy(tmp_path/'valid/dog/2.png', tmp_path/'train/dog/z.png')
    task = load(tmp_path)
    assert len(task.test) == 40 and [len(s) for s in task.splits] == [40, 40, 40]
    why = dict(task.skipped)
    assert set(why) == {'train/cat/x.png', 'valid/cat/y.png', 'train/dog/z.png'}
    assert "'test/cat/1.png'" in why['train/cat/x.png'] and "'valid/dog/2.png'" in why['train/dog/z.png'] and 'left out: 3' in task.source


def test_one_picture_in_two_classes_is_used_in_neither(tmp_path):
    make(tmp_path); shutil.copy(tmp_path/'cat/0.png', tmp_path/'dog/a.png')
    task = load(tmp_path)
    assert sorted(f for f, _ in task.skipped) == ['cat/0.png', 'dog/a.png'] and sum(map(len, task.splits)) == 39
    assert all("'cat/0.png'" in why and "'dog/a.png'" in why for _, why in task.skipped)


def test_a_class_of_copies_is_refused(tmp_path):
    make(tmp_path, n=12)
    for i in range(12): shutil.copy(tmp_path/'dog/0.png', tmp_path/f'dog/{i}.png') if i else None
    refused(lambda: load(tmp_path), "'dog'", 'different')


# ---------------------------------------------------------------- what is asked for

def test_numbers_that_cannot_be_met(tmp_path):
    make(tmp_path)
    refused(lambda: load(tmp_path, n_train=25), '25 pictures', 'train', '24 are left', 'fewer')
    refused(lambda: load(tmp_path, n_train=1), 'train', 'class')
    refused(lambda: load(tmp_path, valid=1), 'valid', 'class'); refused(lambda: load(tmp_path, test=100), 'test', '40')
    refused(lambda: load(tmp_path, valid=.5, test=.5), 'train', '0 are left'); refused(lambda: load(tmp_path, valid=0.), 'valid', 'between 0 and 1')
    refused(lambda: load(tmp_path, test=1.), 'test'); refused(lambda: load(tmp_path, size=4), 'size')
    refused(lambda: load(tmp_path, size=10**6), 'size')
    for bad in ('9', 2.5, True, 0, -3): refused(lambda bad=bad: load(tmp_path, n_train=bad), 'train')
    for bad in ('0', -1, 1.5, None): refused(lambda bad=bad: load(tmp_path, seed=bad), 'seed', repr(bad))
    assert [len(s) for s in load(tmp_path, n_train=5, valid=3, test=7).splits] == [5, 3, 7]
    assert [len(s) for s in load(tmp_path, valid=.001, test=.001).splits] == [36, 2, 2], 'at least one a class'


def test_paths_that_are_not_folders(tmp_path):
    refused(lambda: load(tmp_path/'none'), str(tmp_path/'none'), 'no folder'); refused(lambda: load(tmp_path), 'no class folders', 'add a folder')
    (tmp_path/'pets.zip').write_bytes(b'PK'); refused(lambda: load(tmp_path/'pets.zip'), 'is a file', 'unpack')
    (tmp_path/'one/cat').mkdir(parents=True); refused(lambda: load(tmp_path/'one'), 'one class only', "'cat'")
    (tmp_path/'one/cat/a').mkdir(); (tmp_path/'one/cat/b').mkdir(); refused(lambda: load(tmp_path/'one'), 'one class only', str(tmp_path/'one/cat'))
    (tmp_path/'loose').mkdir(); noise(0).save(tmp_path/'loose/a.png'); refused(lambda: load(tmp_path/'loose'), 'no class folders', 'of its own')
    make(tmp_path/'hole', n=5); (tmp_path/'hole/empty').mkdir(); refused(lambda: load(tmp_path/'hole'), str(tmp_path/'hole/empty'), 'no pictures')
    refused(lambda: load('a\0b'), 'cannot be opened'); refused(lambda: load('x' * 5000), 'cannot be opened')


def test_split_folders_that_do_not_fit(tmp_path):
    make(tmp_path/'a', parts=('train', 'val', 'valid'), n=4); refused(lambda: load(tmp_path/'a'), "'val'", "'valid'", 'keep one')
    make(tmp_path/'b', parts=('test', 'valid'), n=4); refused(lambda: load(tmp_path/'b'), "no folder 'train'")
    make(tmp_path/'c', parts=('train', 'test'), n=4); make(tmp_path/'c', ('cow',), 4, ('test',), 50)
    refused(lambda: load(tmp_path/'c'), "'cow'", 'missing', 'train')
    make(tmp_path/'d', parts=('train', 'test')); (tmp_path/'d/single_prediction').mkdir(); noise(0).save(tmp_path/'d/a.png')
    noise(0).save(tmp_path/'d/train/b.png')
    assert {f for f, _ in load(tmp_path/'d').skipped} == {'single_prediction', 'a.png', 'train/b.png'}, 'what is not read is listed'


def test_memory_is_stated_and_missed_beforehand(tmp_path, monkeypatch):
    assert f'{40 * 16 * 16 * 3 / 1e6:.1f} MB in memory' in load(make(tmp_path)).source
    monkeypatch.setattr(files, 'available_memory', lambda: 10_000)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter('always'); told = []
        monkeypatch.setattr(files, 'try_picture', lambda *a: told.append(len(heard)) or np.zeros((16, 16, 3), np.uint8))
        load(tmp_path)
    assert len(heard) == 1 and set(told) == {1}, 'one warning, before anything is decoded'
    assert heard[0].filename == __file__, 'at the line of the caller'
    assert '40 pictures' in str(heard[0].message) and 'smaller size=' in str(heard[0].message)
    with pytest.warns(UserWarning, match='memory is free'): load_pets(n_train=50, verbose=False)
    monkeypatch.setattr(files, 'available_memory', lambda: None); load(tmp_path)


def test_memory_that_is_not_there(tmp_path, monkeypatch):
    def no(*a, **k): raise MemoryError
    make(tmp_path); monkeypatch.setattr(files.np, 'empty', no)
    monkeypatch.setattr('transfer_course.tasks.stratified_order', lambda labels, *a: np.arange(len(labels)))
    refused(lambda: load(tmp_path), 'memory', 'fewer')


# ---------------------------------------------------------------- pictures that are no pictures

def png(width, height, bits, raw):
    "A PNG of colour type 2 by hand, honest or not."
    def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    head = struct.pack('>IIBBBBB', width, height, bits, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(raw)) + chunk(b'IEND', b'')


def saved(kind, side=200, **options):
    out = io.BytesIO(); noise(7, side).save(out, kind, **options); return out.getvalue()


BAD = {
    'text.jpg': (b'once upon a time', 'not a picture'),
    'page.png': (b'<html><script>alert(1)</script></html>', 'not a picture'),
    'script.jpg': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'not a picture'),
    'phone.heic': (b'\0\0\0\x18ftypheic' + b'\0' * 99, 'HEIC'),
    'empty.jpg': (b'', 'empty (0 bytes)'),
    'three.jpg': (b'\xff\xd8\xff', 'not a picture'),
    'short.jpg': (saved('JPEG')[:900], 'cut short'),
    'half.jpg': (saved('JPEG')[:9000], 'cut short'),
    'half.png': (saved('PNG')[:9000], 'cut short'),
    'half.gif': (saved('GIF')[:5000], 'cut short'),
    'half.bmp': (saved('BMP')[:9000], 'cut short'),
    'half.webp': (saved('WEBP')[:3000], 'fetch the file again'),
    'half.tif': (saved('TIFF')[:9000], 'fetch the file again'),
    'broken.png': (saved('PNG')[:60] + b'\0' * 4000, 'fetch the file again'),
    'line.png': (saved('PNG', 1), '1 × 1 pixels'),
    'bomb.png': (png(30_000, 30_000, 8, b'0' * 99), '100,000,000 pixels'),
    'big.png': (png(12_000, 9_000, 8, b'0' * 99), '12,000 × 9,000')}


@pytest.mark.parametrize('name', BAD)
def test_a_bad_picture_is_left_out_and_listed(tmp_path, name):
    content, word = BAD[name]
    make(tmp_path); (tmp_path/'cat'/name).write_bytes(content)
    task = load(tmp_path)
    assert [f for f, _ in task.skipped] == [f'cat/{name}'] and word in task.skipped[0][1] and ': ' in task.skipped[0][1], task.skipped
    assert sum(map(len, task.splits)) == 40 and not any(parts_of(task, f'cat/{name}'))
    refused(lambda: read_picture(tmp_path/'cat'/name), name, word)


def test_all_bad_pictures_at_once_with_warnings_as_errors(tmp_path):
    make(tmp_path, n=100)
    for name, (content, _) in BAD.items(): (tmp_path/'dog'/name).write_bytes(content)
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True   # as some libraries leave it
    try:
        with warnings.catch_warnings(): warnings.simplefilter('error'); task = load(tmp_path)
        assert ImageFile.LOAD_TRUNCATED_IMAGES is True, 'and as we leave it too'
    finally: ImageFile.LOAD_TRUNCATED_IMAGES = before
    assert len(task.skipped) == len(BAD) and sum(map(len, task.splits)) == 200
    assert [len(s) for s in task.splits] == [200 - 2 * len(task.test), len(task.test), len(task.test)], 'valid and test are filled up'


def test_a_bad_picture_is_replaced_within_a_budget(tmp_path):
    make(tmp_path, n=60)
    first = load(tmp_path, n_train=20)
    (tmp_path/first.train.ids[3]).write_bytes(b'no'); (tmp_path/first.test.ids[0]).write_bytes(b'no')
    second = load(tmp_path, n_train=20)
    assert [len(s) for s in second.splits] == [20, 24, 24] and len(second.skipped) == 2
    assert [i for i in first.train.ids if i in second.train.ids][:3] == first.train.ids[:3]


def test_more_than_a_tenth_is_an_error(tmp_path):
    make(tmp_path, n=20)
    for i in range(4): (tmp_path/f'cat/{i}.png').write_bytes(b'gone')
    assert len(load(tmp_path).skipped) == 4
    (tmp_path/'dog/0.png').write_bytes(b'gone')
    error = refused(lambda: load(tmp_path), '5 of 40', '.png', 'not a picture')
    assert len(error.skipped) == 5
    for f in tmp_path.rglob('*.png'): f.write_bytes(b'gone')
    refused(lambda: load(tmp_path), '40 of 40')
    make(tmp_path/'few', n=20); (tmp_path/'few/cat/0.png').write_bytes(b'gone')
    refused(lambda: load(tmp_path/'few', n_train=32 - 8, valid=8, test=8), 'train', '23 good', '.skipped')


def test_one_error_page_under_many_names_counts_as_many(tmp_path):
    make(tmp_path, n=45)
    for name in ('cat/a.jpg', 'cat/b.jpg', 'dog/a.jpg'): (tmp_path/name).write_bytes(b'<html>404</html>')
    task = load(tmp_path)
    assert len(task.skipped) == 3 and all('not a picture' in why for _, why in task.skipped), 'and not: one picture in two classes'
    for i in range(10): (tmp_path/f'dog/page {i}.jpg').write_bytes(b'<html>404</html>')
    refused(lambda: load(tmp_path), '13 of 103', 'not a picture')


def test_files_that_are_not_meant_to_be_pictures(tmp_path):
    make(tmp_path)
    for name in ('.DS_Store', 'Thumbs.db', '.hidden.jpg'): (tmp_path/'cat'/name).write_bytes(b'x')
    for i in range(30): (tmp_path/f'dog/{i}.xml').write_text('<note/>')
    noise(900).save(tmp_path/'dog/no suffix', 'JPEG'); (tmp_path/'__MACOSX').mkdir()
    task = load(tmp_path)
    assert sum(map(len, task.splits)) == 41 and len(task.skipped) == 30 and all('not a picture' in why for _, why in task.skipped)


# ---------------------------------------------------------------- pictures of every kind

RED = (200, 30, 30)


def near(picture, color, far=12): return np.abs(picture.reshape(-1, 3).astype(int) - color).max() <= far


MODES = {'RGB': RED, 'CMYK': RED, 'P': RED, 'RGBA': RED, 'YCbCr': RED, '16 bit colour': RED, 'L': (87,) * 3, 'LA': (87,) * 3, 'I;16': (87,) * 3,
         'F': (87,) * 3, '1': (255,) * 3, 'P clear': (255,) * 3, 'L key': (255,) * 3}


@pytest.mark.parametrize('mode, color', MODES.items())
def test_modes(tmp_path, mode, color):
    rgb, path = Image.new('RGB', (40, 30), RED), tmp_path/'p.png'
    if mode in ('CMYK', 'YCbCr'): path = path.with_suffix('.jpg'); rgb.convert(mode).save(path, quality=95)
    elif mode == 'P': rgb.quantize(4).save(path)
    elif mode == '1': Image.new('1', (40, 30), 1).save(path)
    elif mode == 'I;16': Image.fromarray(np.full((30, 40), 87 * 257, np.uint16)).save(path)
    elif mode == 'F': path = path.with_suffix('.tif'); Image.fromarray(np.full((30, 40), 87 / 255, np.float32)).save(path)
    elif mode == 'P clear': im = Image.new('P', (40, 30), 0); im.putpalette([200, 30, 30] * 2); im.save(path, transparency=0)
    elif mode == 'L key': Image.new('L', (40, 30), 9).save(path, transparency=9)
    elif mode == '16 bit colour':
        path.write_bytes(png(40, 30, 16, (b'\0' + struct.pack('>HHH', *(c * 257 for c in RED)) * 40) * 30))
    else: rgb.convert(mode).save(path)
    assert near(read_picture(path, 16), color), read_picture(path, 16)[0, 0]


def test_transparency_lies_on_white(tmp_path):
    a = np.zeros((40, 40, 4), np.uint8); a[..., :3] = RED; a[:, 20:, 3] = 255; a[:, :20, :3] = 0
    Image.fromarray(a).save(tmp_path/'a.png'); Image.fromarray(a).save(tmp_path/'a.webp', lossless=True)
    for name in ('a.png', 'a.webp'):
        p = read_picture(tmp_path/name, 40)
        assert near(p[:, :16], (255,) * 3) and near(p[:, 24:], RED)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    a = np.zeros((64, 64, 3), np.uint8); a[:32, :32] = (255, 0, 0); a[:32, 32:] = (0, 255, 0); a[32:, :32] = (0, 0, 255)
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]   # how a camera that was turned would have stored it
    stored = Image.fromarray(a) if back is None else Image.fromarray(a).transpose(Image.Transpose(back))
    exif = Image.Exif(); exif[0x0112] = orientation
    for name in ('p.jpg', 'p.png', 'p.webp', 'p.tif'):
        stored.save(tmp_path/name, exif=exif)
        assert np.abs(read_picture(tmp_path/name, 64)[8:24, 8:24].mean((0, 1)) - (255, 0, 0)).max() < 12, name


def test_broken_exif_loses_nothing(tmp_path):
    noise(1).save(tmp_path/'a.jpg', exif=b'Exif\0\0MM\0*\0\0\0\xff\xff\xff\xff\xff\xff\xff')
    assert read_picture(tmp_path/'a.jpg', 16).shape == (16, 16, 3)


@pytest.mark.parametrize('suffix', ['gif', 'png', 'webp', 'tif'])
def test_the_first_frame_counts(tmp_path, suffix):
    frames = [Image.new('RGB', (32, 32), c) for c in (RED, (0, 0, 250), (0, 250, 0))]
    frames[0].save(tmp_path/f'a.{suffix}', save_all=True, append_images=frames[1:], **(dict(duration=50) if suffix != 'tif' else {}))
    assert near(read_picture(tmp_path/f'a.{suffix}', 16), RED)


def test_centre_crop_and_draft_agree_with_a_plain_resize(tmp_path):
    wide = Image.fromarray(np.repeat(np.linspace(0, 255, 900).astype(np.uint8)[None], 300, 0)).convert('RGB')
    wide.save(tmp_path/'w.jpg', quality=95); wide.rotate(90, expand=True).save(tmp_path/'h.jpg', quality=95)
    plain = np.asarray(wide.crop((300, 0, 600, 300)).resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(read_picture(tmp_path/'w.jpg', 64) - plain).max() < 6
    assert np.abs(np.rot90(read_picture(tmp_path/'h.jpg', 64), -1) - plain).max() < 6


def test_a_thin_strip_does_not_fill_memory(tmp_path):
    Image.new('RGB', (8, 60_000), RED).save(tmp_path/'s.png'); Image.new('RGB', (7, 60), RED).save(tmp_path/'t.png')
    assert near(read_picture(tmp_path/'s.png', 256), RED); refused(lambda: read_picture(tmp_path/'t.png'), '7 × 60')


# ---------------------------------------------------------------- names, links, permissions

ODD = ['two words.png', 'quo"te\'s.png', 'new\nline.png', 'élan 猫 🐈.png', '<script>alert(1)<script>.png', '$x_1$.png', '-rf.png', 'a\u202egnp.png',
       '%20&amp;.png', 'trailing .png']


@pytest.mark.skipif(os.name == 'nt', reason='Windows does not allow these names')
def test_odd_names(tmp_path):
    classes = ('<script>alert("x")<script>', '$\\frac{$', 'l1\nl2', 'émile')
    make(tmp_path, classes, n=12)
    for i, name in enumerate(ODD): noise(1000 + i).save(tmp_path/classes[0]/name)
    noise(2000).save(os.fsencode(tmp_path/classes[1]) + b'/\xff\xfe.png')
    (tmp_path/classes[2]/'<img src=x onerror=alert(1)>\n.png').write_bytes(b'bad')
    task = load(tmp_path)
    found = [i for s in task.splits for i in s.ids]
    assert len(found) == 48 + len(ODD) + 1 and f'{classes[0]}/{ODD[3]}' in found and all(i.encode('utf-8') for i in found)
    html = task._repr_html_()
    assert '<script' not in html and '<img' not in html and 'files left out: 1' in html and '\n' not in task.source
    assert '\n' not in repr(task)
    for figure in (task.show(2), task.test.show(8, 4)): figure.savefig(io.BytesIO())


def test_accents_of_two_kinds_are_one_class(tmp_path):
    make(tmp_path, ('caf\u00e9', 'tea'), 6, ('train',)); make(tmp_path, ('cafe\u0301', 'tea'), 6, ('test',), 50)
    assert load(tmp_path).classes == ['caf\u00e9', 'tea']


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no links or pipes here')
def test_links_and_pipes(tmp_path):
    make(tmp_path/'p'); make(tmp_path/'else', ('more',), 5, start=300); cat = tmp_path/'p/cat'
    (cat/'up').symlink_to('..'); (cat/'self').symlink_to('.'); (cat/'more').symlink_to(tmp_path/'else/more')
    (cat/'again').symlink_to(tmp_path/'else/more')
    (cat/'loop.png').symlink_to('loop.png'); (cat/'gone.png').symlink_to('nowhere.png'); os.mkfifo(cat/'pipe.png')
    (tmp_path/'p/dog/deep').mkdir(); (tmp_path/'p/dog/deep/root').symlink_to(tmp_path/'p'); (tmp_path/'link').symlink_to(tmp_path/'p')
    for root in (tmp_path/'p', tmp_path/'link'):
        task = load(root)
        why = dict(task.skipped)
        assert sum(map(len, task.splits)) == 45 and len([i for s in task.splits for i in s.ids if i.startswith('cat/')]) == 25
        assert set(why) == {'cat/up', 'cat/self', 'cat/more', 'cat/loop.png', 'cat/gone.png', 'cat/pipe.png', 'dog/deep/root'}, why
        assert 'leads nowhere' in why['cat/gone.png'] and 'ordinary' in why['cat/pipe.png'] and 'remove' in why['cat/loop.png']


@contextlib.contextmanager
def as_nobody():
    "Without the rights of root, for whom no file is closed."
    if not hasattr(os, 'geteuid'): pytest.skip('no such permissions on this system')
    if os.geteuid() != 0: yield; return
    try: os.seteuid(65534)
    except OSError: pytest.skip('cannot give up the rights of root here')
    try: yield
    finally: os.seteuid(0)


def test_no_permission():
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o755); root = make(Path(top)/'p'); closed = root/'cat/3.png', root/'dog/sub', root/'cat', root
        (root/'dog/sub').mkdir(); noise(999).save(root/'dog/sub/a.png')
        for path, mode in zip(closed[:2], (0, 0)): path.chmod(mode)
        try:
            with as_nobody(): task = load(root); refused(lambda: read_picture(closed[0]), 'permission', '3.png', 'chmod')
            assert {f: 'chmod' in why for f, why in task.skipped} == {'cat/3.png': True, 'dog/sub': True} and sum(map(len, task.splits)) == 39
            for folder in closed[2:]:
                folder.chmod(0)
                with as_nobody(): refused(lambda folder=folder: load(root), str(folder), 'may not be looked into', 'chmod')
                folder.chmod(0o755)
        finally:
            for path in reversed(closed): path.chmod(0o755)


# ---------------------------------------------------------------- Split and Task

def test_split_is_lazy_and_cuts_every_way():
    made = []
    def maker(): made.append(1); return np.arange(5, dtype=np.uint8)[:, None, None, None]
    split = Split('train', maker, range(5), 'abcde', list('vwxyz'), dict(k=list('12345')))
    mask, none = np.array([True, False, True, False, False]), np.array([], int)
    for rows, ids in ([4, 0], 'ea'), (slice(1, 3), 'bc'), (mask, 'ac'), (none, ''), (slice(None, None, -2), 'eca'):
        part = split.subset(rows)
        assert ''.join(part.ids) == ids and part.groups == [split.groups['abcde'.index(i)] for i in ids] and len(part) == len(ids)
        assert part.extra['k'] == [split.extra['k']['abcde'.index(i)] for i in ids]
    assert not made
    assert split.subset([3, 1]).subset([1]).inputs.tolist() == [[[[1]]]] and made == [1] and split.inputs.shape == (5, 1, 1, 1) and made == [1]
    refused(lambda: Split('train', None, [0, 1], ['a']), 'train', '2 labels', '1 ids'); refused(lambda: split.subset([]).show(), 'empty')
    with pytest.raises(IndexError): split.subset([9])


def test_texts_fit_too():
    texts = ['good <b>', 'bad\n$x$', 'fine ' * 60]
    parts = [Split(n, texts, [1, 0, 1], ['r1', 'r2', 'r3']) for n in ('train', 'valid', 'test')]
    task = Task('reviews', 'texts', ['bad', 'good'], *parts)
    small = task.budget(2).train
    assert sorted(small.labels) == [0, 1] and small.inputs == [texts[int(i[1]) - 1] for i in small.ids]
    task.test.show().savefig(io.BytesIO()); assert 'reviews' in repr(task)


def test_many_classes_and_extra_columns(tmp_path):
    task = load(make(tmp_path, [f'class {i:02}' for i in range(25)], n=3), valid=25, test=25)
    assert 'and 5 more' in task._repr_html_() and '25 classes' in repr(task) and len(task.counts()) == 25
    assert len(task.show(1).axes) >= 6 and task.train.extra == {}


def test_line_and_silence(tmp_path, capsys):
    task = from_folder(make(tmp_path), size=16)
    out = capsys.readouterr().out
    assert out == task.source + '\n' and str(tmp_path) in out and '24 + 8 + 8 pictures of 16 × 16' in out and 'MB' in out
    load(tmp_path); load_pets(verbose=False)
    assert capsys.readouterr() == ('', '')


# ---------------------------------------------------------------- drawings

def pets(**kw): return load_pets(**dict(dict(n_train=6, n_valid=4, n_test=4, size=32, verbose=False), **kw))


def test_drawn_pets_are_balanced_disjoint_and_repeatable():
    a, b, other = pets(), pets(), pets(seed=1)
    assert a.classes == ['cat', 'dog'] and a.counts().to_numpy().tolist() == [[3, 2, 2], [3, 2, 2]] and 'drawn by the course' in a.source
    for s, t in zip(a.splits, b.splits): assert np.array_equal(s.inputs, t.inputs) and s.inputs.shape[1:] == (32, 32, 3)
    assert a.test.ids == other.test.ids and not set(a.train.ids) & set(other.train.ids)
    big = [load_pets(n_train=500_000, n_valid=500_000, n_test=500_000, size=8, seed=s, verbose=False) for s in (0, 1)]
    ranges = sorted({(int(s.ids[0]), int(s.ids[-1])) for t in big for s in t.splits})
    assert len(ranges) == 5 and all(hi < lo for (_, hi), (lo, _) in zip(ranges, ranges[1:]))


def test_drawn_budgets_are_nested_and_ids_draw_again():
    from transfer_course.backstage.drawings import draw
    small, large = pets(n_train=4), pets()
    assert small.train.ids == large.train.ids[:4] and np.array_equal(small.train.inputs, large.train.inputs[:4])
    for i, y, p in zip(large.test.ids, large.test.labels, large.test.inputs): assert np.array_equal(draw(int(i), int(y), 32), p)
    assert set(large.budget(2).train.ids) < set(large.budget(4).train.ids) < set(large.train.ids)


def test_drawings_are_made_only_when_used(monkeypatch):
    from transfer_course.backstage import drawings
    drawn, real = [], drawings.draw
    monkeypatch.setattr(drawings, 'draw', lambda *a, **k: drawn.append(a) or real(*a, **k))
    task = pets(n_train=1000, n_test=1000)
    assert not drawn
    assert len(task.budget(4).train.inputs) + len(task.test.subset(slice(2)).inputs) == len(drawn) == 6
    again = pickle.loads(pickle.dumps(task.budget(4)))
    assert np.array_equal(again.train.inputs, task.budget(4).train.inputs)


def test_drawn_domains_and_refusals():
    from transfer_course.backstage.drawings import DOMAINS
    looks = [pets(domain=d, n_train=2).train.inputs for d in DOMAINS]
    assert all(not np.array_equal(a, b) for i, a in enumerate(looks) for b in looks[:i])
    refused(lambda: pets(domain='<b>'), "'<b>'", 'natural'); refused(lambda: pets(difficulty=2), 'difficulty')
    refused(lambda: pets(n_train=None), 'n_train')
    refused(lambda: pets(seed=10**6), 'below a million'); refused(lambda: pets(n_test=1), 'n_test'); refused(lambda: pets(n_valid=10**6), '500,000')
    refused(lambda: load_pets('painted'), "'painted'", 'photos')
    refused(lambda: pets(seed=-1), 'seed'); refused(lambda: pets(size=5), 'size'); refused(lambda: pets(n_train=True), 'n_train')


# ---------------------------------------------------------------- photographs

@pytest.fixture
def offline(monkeypatch):
    "No socket may be opened."
    def no(*a, **k): raise OSError('the network is off')
    monkeypatch.setattr(socket.socket, 'connect', no); monkeypatch.setattr(socket, 'getaddrinfo', no)


def photos(root, **kw): return load_pets('photos', root=root, **dict(dict(n_train=30, n_valid=15, n_test=None, size=32, verbose=False), **kw))


def test_real_photos_without_a_network(offline):
    root = need('oxford-iiit-pet')
    a, b = photos(root), photos(root.parent, seed=1)
    assert [len(s) for s in a.splits] == [30, 15, 90] and a.classes == ['cat', 'dog'] and not a.skipped and 'Oxford-IIIT Pet' in a.source
    assert a.counts()['test'].tolist() == [60, 30] and a.counts()['train'].tolist() == [20, 10]
    assert sorted(set(a.test.extra['breed'])) == ['Abyssinian', 'American Bulldog', 'Bengal']
    assert a.test.ids == b.test.ids and a.train.ids != b.train.ids and a.train.inputs.std() > 20
    assert [len(s) for s in photos(root, n_train=None, n_valid=None).splits] == [72, 18, 90] and len(photos(root, n_test=10).test) == 10
    assert photos(root, n_test=10).test.ids == a.test.ids[:10] and photos(root, n_train=10).train.ids == a.train.ids[:10]
    refused(lambda: photos(root, n_train=200), '200', '75'); refused(lambda: photos(root, n_test=91), 'test', '90')


def test_labels_agree_with_torchvision():
    root = need('oxford-iiit-pet')
    datasets = pytest.importorskip('torchvision.datasets')
    task = photos(root, n_train=None)
    ours = {i: int(y) for s in task.splits for i, y in zip(s.ids, s.labels)}
    theirs = {}
    for split in ('trainval', 'test'):
        data = datasets.OxfordIIITPet(root.parent, split=split, target_types='binary-category', download=False, transform=lambda im: None)
        for i, path in enumerate(data._images): theirs[Path(path).name] = data[i][1] if i % 10 == 0 else data._bin_labels[i]
    assert ours == theirs


def small_pets(folder, n=12):
    "The layout of Oxford-IIIT Pet with small pictures."
    (folder/'images').mkdir(parents=True); (folder/'annotations').mkdir()
    for k, file in enumerate(('trainval.txt', 'test.txt')):
        lines = [('Some_Cat' if i % 2 else 'big_dog') + f'_{n * k + i} {1 + i % 2} {2 - i % 2} 1' for i in range(n)]
        (folder/'annotations'/file).write_text('\n'.join(lines) + '\n')
        for i, line in enumerate(lines): noise(100 * k + i).save(folder/'images'/f'{line.split()[0]}.jpg')
    return folder


def test_damaged_photo_folders(tmp_path, offline):
    ask = dict(n_train=4, n_valid=2)
    pet = small_pets(tmp_path/'oxford-iiit-pet', 24)
    assert photos(tmp_path, **ask).train.extra['breed'][0] in ('Some Cat', 'Big Dog')
    (pet/'images/Some_Cat_1.jpg').unlink(); (pet/'images/big_dog_2.jpg').write_bytes(b'')
    why = dict(photos(tmp_path, n_train=None, n_valid=2).skipped)
    assert 'no such file' in why['Some_Cat_1.jpg'] and 'empty' in why['big_dog_2.jpg']
    shutil.copy(pet/'images/big_dog_24.jpg', pet/'images/big_dog_4.jpg')
    assert "'big_dog_24.jpg'" in dict(photos(tmp_path, n_train=None, n_valid=2).skipped)['big_dog_4.jpg'], 'a copy of a test photograph'
    (pet/'annotations/test.txt').write_text('# name breed\nSome_Cat_1 1\n')
    refused(lambda: photos(tmp_path, **ask), 'Line 2', 'test.txt', 'load again')
    (pet/'annotations/test.txt').unlink(); refused(lambda: photos(tmp_path, **ask), 'test.txt', 'load again')
    shutil.rmtree(pet/'annotations'); refused(lambda: photos(tmp_path, **ask), 'only a part', 'remove it')


def test_photos_that_are_not_here(tmp_path, monkeypatch, offline):
    refused(lambda: photos(tmp_path, download=False), str(tmp_path), "load_pets('drawn')", 'root=')
    monkeypatch.setenv('TRANSFER_COURSE_CACHE', str(tmp_path/'cache')); refused(lambda: photos(None, download=False), str(tmp_path/'cache'))
    small_pets(tmp_path/'cache/oxford-iiit-pet'); assert len(photos(None, n_train=4, n_valid=2).test) == 12
    monkeypatch.setitem(sys.modules, 'torchvision.datasets', None)
    refused(lambda: photos(tmp_path/'new'), 'could not be fetched', "load_pets('drawn')")


@pytest.fixture
def server(tmp_path, monkeypatch):
    "A web server with a small Oxford-IIIT Pet, and a torchvision that looks there."
    datasets = pytest.importorskip('torchvision.datasets')
    site, pet = tmp_path/'site', small_pets(tmp_path/'made')
    site.mkdir(); sums = []
    for half in ('images', 'annotations'):
        with tarfile.open(site/f'{half}.tar.gz', 'w:gz') as tar: tar.add(pet/half, half)
        sums.append(hashlib.md5((site/f'{half}.tar.gz').read_bytes()).hexdigest())
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *a, **k): super().__init__(*a, directory=str(site), **k)
        def log_message(self, *a): asked.append(self.path)
    httpd = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    address = f'http://127.0.0.1:{httpd.server_address[1]}'
    monkeypatch.setattr(datasets.OxfordIIITPet, '_RESOURCES', [(f'{address}/{half}.tar.gz', s) for half, s in zip(('images', 'annotations'), sums)])
    yield site, asked
    httpd.shutdown(); httpd.server_close()


def test_download_is_whole_or_not_there(tmp_path, server, capsys):
    (site, asked), root = server, tmp_path/'cache'
    good = (site/'annotations.tar.gz').read_bytes()
    (site/'annotations.tar.gz').write_bytes(good[:-20])
    refused(lambda: photos(root, n_train=4, n_valid=2), 'could not be fetched', str(root), "load_pets('drawn')")
    assert not (root/'oxford-iiit-pet').exists(), 'nothing half there'
    (root/'.incomplete/oxford-iiit-pet/images/half.jpg').write_bytes(b'x'); (site/'annotations.tar.gz').write_bytes(good); asked.clear()
    capsys.readouterr()
    task = photos(root, n_train=4, n_valid=2, verbose=True)
    assert [len(s) for s in task.splits] == [4, 2, 12] and not any('images' in p for p in asked), 'what has arrived is not fetched again'
    assert sorted(os.listdir(root)) == ['oxford-iiit-pet'] and sorted(os.listdir(root/'oxford-iiit-pet')) == ['annotations', 'images']
    assert 'Fetching' in capsys.readouterr().out and not (root/'oxford-iiit-pet/images/half.jpg').exists()
    asked.clear(); photos(root, n_train=4, n_valid=2); assert not asked


def test_no_server_and_no_disk(tmp_path, server, monkeypatch):
    monkeypatch.setattr(files.shutil, 'disk_usage', lambda p: shutil._ntuple_diskusage(9, 9, 10**6))
    refused(lambda: photos(tmp_path/'a'), 'could not be fetched', 'disk')
    monkeypatch.undo()
    import torchvision.datasets as datasets
    monkeypatch.setattr(datasets.OxfordIIITPet, '_RESOURCES', [('http://127.0.0.1:9/x.tar.gz', '0' * 32)])
    refused(lambda: photos(tmp_path/'b'), 'could not be fetched', 'check the network')


def test_real_folder():
    root = need('cats_and_dogs')
    task = load(root, n_train=200, size=64)
    assert [len(s) for s in task.splits] == [200, 240, 400] and task.classes == ['cats', 'dogs'] and not task.skipped
    assert task.counts().to_numpy().tolist() == [[100, 120, 200]] * 2 and task.train.inputs.std() > 40
    assert all(i.startswith('test/') for i in task.test.ids) and all(i.startswith('train/') for i in task.train.ids + task.valid.ids)
    assert len({hashlib.sha256((root/i).read_bytes()).digest() for s in task.splits for i in s.ids}) == 840


def test_groups_may_come_as_an_array():
    "As a column of a table does; and as many as there are examples."
    s = Split('train', ['a', 'b', 'c'], [0, 1, 0], ['1', '2', '3'], groups=np.array([7, 7, 9]))
    assert s.subset([2, 0]).groups == [9, 7]
    with pytest.raises(TaskError, match='2 groups for 3 examples'): Split('train', ['a', 'b', 'c'], [0, 1, 0], ['1', '2', '3'], groups=[1, 2])


# ---------------------------------------------------------------- what readers of the code found

def test_output_without_such_letters_loses_no_task(tmp_path):
    code = ("from transfer_course.tasks import load_pets; from transfer_course.backbones import load_backbone\n"
            "load_pets('drawn', 4, 4, 4, size=32); load_backbone('pocket-resnet')")
    for encoding in ('cp1252', 'ascii'):
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, env=os.environ | dict(PYTHONIOENCODING=encoding))
        assert done.returncode == 0 and b'pocket-resnet: stem ? layer1' in done.stdout, done.stderr[-500:]


def test_a_class_may_be_called_train(tmp_path):
    for i, name in enumerate(('bus', 'car', 'train')):
        (tmp_path/'a'/name).mkdir(parents=True)
        for k in range(8): Image.new('RGB', (40, 40), (80 * i, 20 * k, 9)).save(tmp_path/'a'/name/f'{k}.png')
    assert from_folder(tmp_path/'a', size=32, verbose=False).classes == ['bus', 'car', 'train']
    for kind in ('diesel', 'steam'):
        (tmp_path/'a'/'train'/kind).mkdir()
        for k in range(8): (tmp_path/'a'/'train'/f'{k}.png').replace(tmp_path/'a'/'train'/kind/f'{k}.png') if kind == 'diesel' else \
            Image.new('RGB', (40, 40), (9, 9, 20 * k)).save(tmp_path/'a'/'train'/kind/f'{k}.png')
    refused(lambda: from_folder(tmp_path/'a', size=32, verbose=False), 'not plain what the classes are')


def test_threads_that_read_pictures_leave_warnings_as_they_were(tmp_path):
    Image.new('RGB', (40, 40)).save(tmp_path/'x.png'); before, cut = list(warnings.filters), ImageFile.LOAD_TRUNCATED_IMAGES
    def read():
        for _ in range(30): read_picture(tmp_path/'x.png', 32)
    threads = [threading.Thread(target=read) for _ in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert warnings.filters == before and ImageFile.LOAD_TRUNCATED_IMAGES == cut and not files._strict['depth']


def test_what_is_no_fault_of_a_picture_stops(tmp_path, monkeypatch):
    Image.new('RGB', (40, 40)).save(tmp_path/'x.png')
    for error, words in ((MemoryError(), 'Memory ran out'), (OSError(24, 'Too many open files'), 'no fault of the picture')):
        def fail(*a, error=error): raise error
        monkeypatch.setattr(files, '_decode', fail)
        with files.strict_pillow(): refused(lambda: files.try_picture(tmp_path/'x.png', 32), words)


def test_two_processes_fetch_the_pets_once(tmp_path, monkeypatch):
    "The second waits for the first and takes what it finds."
    import torchvision.datasets; began = []
    class Pets:
        def __init__(self, side, download):
            began.append(threading.get_ident()); folder = Path(side)/'oxford-iiit-pet'
            for part in ('images', 'annotations'): (folder/part).mkdir(parents=True)
            threading.Event().wait(.4); (folder/'images'/'last.jpg').write_bytes(b'x')
    monkeypatch.setattr(torchvision.datasets, 'OxfordIIITPet', Pets); found = []
    monkeypatch.setattr(files, '_fetch_pets', functools.partial(files._fetch_pets, need=1))
    threads = [threading.Thread(target=lambda: found.append((files.pet_folder(tmp_path, verbose=False)/'images'/'last.jpg').is_file())) for _ in range(3)]
    for t in threads: t.start(); threading.Event().wait(.1)
    for t in threads: t.join()
    assert found == [True] * 3 and len(began) == 1 and [p.name for p in tmp_path.iterdir()] == ['oxford-iiit-pet']


def test_numbers_of_numpy_are_numbers():
    a, b = (load_pets('drawn', n(4), n(4), n(4), size=32, seed=seed, verbose=False) for n, seed in ((int, 3000), (np.uint8, np.int32(3000))))
    assert a.train.ids == b.train.ids and (a.train.inputs == b.train.inputs).all()
