"Downloads from a server that misbehaves, and archives that mean harm."
import gzip, hashlib, io, multiprocessing, os, socket, subprocess, sys, tarfile, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from transfer_course.backstage import downloads
from transfer_course.backstage.downloads import cache_folder, fetch, is_right, read_member, sha256_of
from transfer_course.backstage.pictures import TaskError

DATA = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()
HTML = b'<!doctype html><title>blocked</title>' + b'x' * 500


class Server(BaseHTTPRequestHandler):
    "Answers as its `mode` says, for the first `bad` requests; then as it should."
    protocol_version = 'HTTP/1.1'
    def log_message(self, *words): pass

    def do_GET(self):
        s = self.server
        span = self.headers.get('Range'); s.asked.append(span); s.heads.append(dict(self.headers))
        mode = s.mode if len(s.asked) <= s.bad else 'right'
        start = int(span[6:-1]) if span and mode != 'ignores' else 0
        body, headers, status = DATA[start:], {}, 206 if start else 200
        if start: headers['Content-Range'] = f'bytes {start}-{len(DATA) - 1}/{len(DATA)}'
        length = len(body)
        if mode in ('cuts', 'ignores'): body = body[:100_000]
        if mode == 'says more': length += 5000
        if mode == 'says less': length -= 5000
        if mode == 'sends more': body += b'!' * 70_000; length = len(body)
        if mode == 'endless': length = None
        if mode == 'no length': length = None
        if mode == 'no length, cut': body, length = body[:100_000], None
        if mode == 'other': body = bytes(len(body))
        if mode == 'short other': body = b'another version'; length = len(body)
        if mode == 'page': body, headers, status = HTML, {'Content-Type': 'text/html; charset=utf-8'}, 200; length = len(body)
        if mode.isdigit(): body, status = b'sorry', int(mode); length = 5
        if mode == 'wrong part': status, headers['Content-Range'] = 206, f'bytes 5-{len(DATA) - 1}/{len(DATA)}'
        if mode == 'junk': self.wfile.write(b'\0\1\2 not http\r\n\r\n'); self.close_connection = True; return
        if mode == 'silent': time.sleep(2); self.close_connection = True; return
        if mode == 'moved' : status, body, length = 302, b'', 0; headers['Location'] = s.target
        self.send_response(status)
        for k, v in headers.items(): self.send_header(k, v)
        if length is not None: self.send_header('Content-Length', str(length))
        self.send_header('Connection', 'close'); self.end_headers()
        try:
            self.wfile.write(body)
            while mode == 'endless': self.wfile.write(bytes(1 << 16)); s.sent += 1 << 16
        except OSError: pass
        self.close_connection = True


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1'); monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    s = ThreadingHTTPServer(('127.0.0.1', 0), Server); s.daemon_threads = True
    s.mode, s.bad, s.asked, s.heads, s.sent, s.target = 'right', 99, [], [], 0, ''
    threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=.01), daemon=True).start()
    yield s
    s.shutdown(); s.server_close()


def get(server, path, **more):
    return fetch(f'http://127.0.0.1:{server.server_port}/a/file.bin', path, more.pop('sha256', SHA), more.pop('size', len(DATA)),
                 **dict(wait=.01, timeout=1, progress=False) | more)


def refused(call, *words):
    with pytest.raises(TaskError) as info: call()
    text = str(info.value)
    assert '\n' not in text and text.endswith('.') and len(text) < 600 and info.value.__suppress_context__ | (info.value.__context__ is None), text
    for word in words: assert word in text, f'{word!r} is missing in: {text}'
    return text


def left(folder): return sorted(p.name for p in folder.iterdir())


def test_a_file_comes_whole_and_is_not_fetched_twice(server, tmp_path):
    path = tmp_path/'new'/'folder'/'file.bin'
    assert get(server, path) == path and path.read_bytes() == DATA and left(path.parent) == ['file.bin']
    assert get(server, path) == path and server.asked == [None]
    assert server.heads[0]['Accept-Encoding'] == 'identity', 'a compressed body would have another sha256'


@pytest.mark.parametrize('mode, bad, asked', [
    ('cuts', 2, [None, 'bytes=100000-', 'bytes=200000-']), ('no length, cut', 2, [None, 'bytes=100000-', 'bytes=200000-']),
    ('ignores', 1, [None, 'bytes=100000-']), ('says more', 9, [None]), ('no length', 9, [None]), ('says less', 1, None), ('sends more', 1, [None, None]),
    ('other', 1, [None, None]), ('short other', 1, [None, None]), ('page', 1, [None, None]), ('503', 2, [None] * 3), ('429', 1, [None] * 2),
    ('junk', 1, [None, None]), ('silent', 1, [None, None])])
def test_what_can_be_cured_is_cured(mode, bad, asked, server, tmp_path):
    server.mode, server.bad = mode, bad
    assert get(server, tmp_path/'file.bin').read_bytes() == DATA and left(tmp_path) == ['file.bin']
    if asked is not None: assert server.asked == asked


def test_a_server_that_ignores_ranges_starts_over(server, tmp_path):
    (tmp_path/'file.bin.part').write_bytes(DATA[:70_000]); server.mode = 'ignores'
    def whole(): get(server, tmp_path/'file.bin', tries=1)
    refused(whole, 'line broke', '0.1 MB'); assert (tmp_path/'file.bin.part').read_bytes() == DATA[:100_000], 'and not 170,000 bytes'


@pytest.mark.parametrize('mode, words', [
    ('cuts', ()), ('sends more', ('more than 300,000 bytes',)), ('endless', ('more than 300,000 bytes',)), ('other', ('another file', SHA[:8])),
    ('short other', ('15 bytes', '300,000')), ('says less', ('295,000 bytes',)), ('page', ('web page',)), ('404', ('404', 'Not Found')), ('403', ('403',)),
    ('500', ('500',)), ('junk', ()), ('silent', ('1 second',)), ('wrong part', ('another part',))])
def test_what_cannot_leaves_nothing_under_the_name(mode, words, server, tmp_path):
    server.mode = mode
    tries = 1 if mode == 'cuts' else 3
    text = refused(lambda: get(server, tmp_path/'file.bin', tries=tries, other='use another'), 'file.bin', ', or use another.', *words)
    assert not (tmp_path/'file.bin').exists()
    if mode == 'cuts': assert (tmp_path/'file.bin.part').stat().st_size == 100_000 and 'goes on' in text
    else: assert left(tmp_path) == []
    assert len(server.asked) == (1 if mode in ('404', '403', 'cuts') else 3)
    if mode == 'endless': assert server.sent < 60_000_000
    server.mode = 'right'
    assert get(server, tmp_path/'file.bin').read_bytes() == DATA and server.asked[-1] == ('bytes=100000-' if mode == 'cuts' else None)


def test_a_rotten_part_is_thrown_away(server, tmp_path):
    for rot in (b'x' * 1000, b'x' * len(DATA), b'x' * (len(DATA) + 5)):
        (tmp_path/'file.bin').unlink(missing_ok=True); (tmp_path/'file.bin.part').write_bytes(rot)
        assert get(server, tmp_path/'file.bin').read_bytes() == DATA and left(tmp_path) == ['file.bin']


def test_a_finished_part_needs_no_network(server, tmp_path):
    (tmp_path/'file.bin.part').write_bytes(DATA)
    assert get(server, tmp_path/'file.bin').read_bytes() == DATA and not server.asked


def test_another_file_of_that_name_is_never_overwritten(server, tmp_path):
    (tmp_path/'file.bin').write_bytes(b'mine')
    refused(lambda: get(server, tmp_path/'file.bin'), 'move it away'); assert (tmp_path/'file.bin').read_bytes() == b'mine' and not server.asked
    (tmp_path/'file.bin').unlink(); (tmp_path/'file.bin').mkdir()
    refused(lambda: get(server, tmp_path/'file.bin'), 'move it away')


def test_redirects_are_followed_to_the_web_only(server, tmp_path):
    server.mode, server.bad, server.target = 'moved', 1, '/b'
    assert get(server, tmp_path/'file.bin').read_bytes() == DATA
    (tmp_path/'secret').write_bytes(DATA); server.asked.clear(); server.bad, server.target = 99, (tmp_path/'secret').as_uri()
    refused(lambda: get(server, tmp_path/'again.bin')); assert not (tmp_path/'again.bin').exists()
    for url in ((tmp_path/'secret').as_uri(), 'ftp://127.0.0.1/x', 'file.bin', ''):
        refused(lambda url=url: fetch(url, tmp_path/'again.bin', SHA, len(DATA)), 'no web address')


def test_no_server_and_no_place(server, tmp_path):
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    refused(lambda: fetch(f'http://127.0.0.1:{port}/x', tmp_path/'x', SHA, 5, wait=.01, progress=False), 'network')
    (tmp_path/'a file').write_text('x')
    refused(lambda: get(server, tmp_path/'a file'/'file.bin'), 'check the folder')


def test_a_full_disk_is_said_before_and_during(server, tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(downloads.shutil, 'disk_usage', lambda p: type('', (), dict(free=1000))())
        refused(lambda: get(server, tmp_path/'file.bin'), 'disk', '0.3 MB'); assert not server.asked
    def full(*words): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(downloads, '_take', full)
    refused(lambda: get(server, tmp_path/'file.bin'), 'No space left'); assert not (tmp_path/'file.bin').exists()


def _child(port, path, queue):
    os.environ['no_proxy'] = '127.0.0.1'
    queue.put(str(fetch(f'http://127.0.0.1:{port}/a', path, SHA, len(DATA), wait=.01, progress=False)))


@pytest.mark.skipif(os.name != 'posix', reason='this system has no file locks of this kind')
def test_two_processes_do_not_mix_their_bytes(server, tmp_path):
    server.mode, server.bad = 'cuts', 2
    mp = multiprocessing.get_context('fork'); queue = mp.Queue()
    jobs = [mp.Process(target=_child, args=(server.server_port, tmp_path/'file.bin', queue)) for _ in range(3)]
    for j in jobs: j.start()
    assert {queue.get(timeout=30) for _ in jobs} == {str(tmp_path/'file.bin')}
    for j in jobs: j.join(10)
    assert (tmp_path/'file.bin').read_bytes() == DATA and len(server.asked) == 3, 'one process fetched, in three goes; the others waited'


def test_a_killed_download_goes_on(server, tmp_path):
    server.mode, server.bad = 'cuts', 1
    code = ('import sys, os, transfer_course.backstage.downloads as d\n'
            'd.time.sleep = lambda s: os._exit(9)\n'   # killed before the second go
            f'd.fetch("http://127.0.0.1:{server.server_port}/a", r"{tmp_path/"file.bin"}", "{SHA}", {len(DATA)}, progress=False)')
    assert subprocess.run([sys.executable, '-c', code]).returncode == 9 and left(tmp_path) == ['file.bin.part']
    assert get(server, tmp_path/'file.bin').read_bytes() == DATA and server.asked == [None, 'bytes=100000-']


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv('TRANSFER_COURSE_CACHE', str(tmp_path))
    assert cache_folder() == tmp_path and cache_folder('~/x').is_absolute()
    monkeypatch.delenv('TRANSFER_COURSE_CACHE'); assert cache_folder().parts[-2:] == ('.cache', 'transfer_course')
    (tmp_path/'x').write_bytes(DATA); assert sha256_of(tmp_path/'x') == SHA and not is_right(tmp_path, SHA, 0)


# ---------------------------------------------------------------- archives

def pack(path, *entries, mode='w:gz', format=tarfile.PAX_FORMAT):
    "An archive of (name, data) and (name, kind, target)."
    with tarfile.open(path, mode, format=format) as tar:
        for name, *more in entries:
            info = tarfile.TarInfo(name)
            if len(more) == 1: info.size = len(more[0]); tar.addfile(info, io.BytesIO(more[0]))
            else: info.type, info.linkname = more; tar.addfile(info)
    return path


def test_only_the_member_is_read_and_nothing_is_written(tmp_path):
    secret = tmp_path/'secret'; secret.write_text('secret'); inner = tmp_path/'in'; inner.mkdir()
    path = pack(inner/'a.tar.gz', ('../up', b'evil'), (str(tmp_path/'absolute'), b'evil'), ('a', tarfile.SYMTYPE, str(tmp_path)),
                ('a/secret', b'evil'), ('hard', tarfile.LNKTYPE, '../secret'), ('dev', tarfile.CHRTYPE, ''), ('block', tarfile.BLKTYPE, ''), ('pipe',
                        tarfile.FIFOTYPE, ''), ('a/good', b'good'))
    assert read_member(path, 'a/good') == b'good'
    assert left(tmp_path) == ['in', 'secret'] and left(inner) == ['a.tar.gz'] and secret.read_text() == 'secret'


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_member_that_is_no_file_is_refused(kind, tmp_path):
    (tmp_path/'secret').write_text('secret')
    refused(lambda: read_member(pack(tmp_path/'a.tar.gz', ('x/y', b'1'), ('x/z', kind, str(tmp_path/'secret'))), 'x/z'), 'link or a device', 'x/z')


def test_bombs_are_stopped_early(tmp_path):
    def bomb(name, *entries):
        with gzip.open(tmp_path/name, 'wb', compresslevel=1) as f:
            for e in entries: f.write(e)
        return tmp_path/name
    def head(name, size, kind=tarfile.REGTYPE): info = tarfile.TarInfo(name); info.size, info.type = size, kind; return info.tobuf(tarfile.GNU_FORMAT)
    zeros = [bytes(1 << 20)] * 30
    for path in (bomb('before.tar.gz', head('big', 30 << 20), *zeros, head('x', 1), b'1' + bytes(511)), bomb('inside.tar.gz', head('x', 30 << 20), *zeros),
                 bomb('claims.tar.gz', head('x', 7 << 40), *zeros), bomb('pax.tar.gz', head('p', 30 << 20, tarfile.XHDTYPE), *zeros),
                 bomb('long.tar.gz', head('l', 30 << 20, tarfile.GNUTYPE_LONGNAME), *zeros)):
        start = time.process_time()
        text = refused(lambda path=path: read_member(path, 'x', most=1 << 20)); assert time.process_time() - start < 2
        assert 'unpacks to more' in text or 'says that it has' in text, text


def test_sparse_members_are_refused(tmp_path):
    info = tarfile.TarInfo('x'); info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT)); head[386:410] = b'00000000000\0' + b'00000001000\0'; head[483:495] = b'%011o\0' % (8 << 30)
    head[148:156] = b' ' * 8; head[148:156] = b'%06o\0 ' % sum(head)
    with gzip.open(tmp_path/'a.tar.gz', 'wb') as f: f.write(bytes(head) + b'1' * 512 + bytes(1024))
    refused(lambda: read_member(tmp_path/'a.tar.gz', 'x'))


def test_broken_archives(tmp_path):
    good = pack(tmp_path/'good.tar.gz', ('x', DATA)).read_bytes()
    flipped = bytearray(good); flipped[len(good) // 2] ^= 255
    for i, data in enumerate((b'', b'hello', good[:1000], bytes(flipped), gzip.compress(b'no tar' * 500), gzip.compress(b''), HTML)):
        (tmp_path/f'{i}.tar.gz').write_bytes(data)
        refused(lambda i=i: read_member(tmp_path/f'{i}.tar.gz', 'x'), f'{i}.tar.gz', 'anew')
    refused(lambda: read_member(tmp_path/'none.tar.gz', 'x')); refused(lambda: read_member(tmp_path/'good.tar.gz', 'y'), 'There is no')
    assert read_member(tmp_path/'good.tar.gz', 'x') == DATA
