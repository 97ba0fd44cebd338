"""How much memory extracting features of many pictures takes above the model.

    python benchmarks/memory.py                  20,000 pictures; writes benchmarks/memory.json

Pictures are made when they are asked for, so that what is measured is the engine and not the data. Peaks are read in a fresh process."""
import argparse, inspect, json, os, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np


class Made:
    "A row of pictures that exist only while they are looked at."
    def __init__(self, n, size): self.shape, self.dtype, self.ndim = (n, size, size, 3), np.dtype(np.uint8), 4
    def __len__(self): return self.shape[0]

    def __getitem__(self, rows):
        if isinstance(rows, (int, np.integer)): return self[[rows]][0]
        rows = range(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        return np.random.default_rng(int(rows[0]) if len(rows) else 0).integers(0, 256, (len(rows), *self.shape[1:]), dtype=np.uint8)


def extract(model, inputs, cut):
    "Features below `cut` by `extract_features` where the course has it, else by `run`. Returns (who did it, shape, type)."
    from transfer_course import features
    do = getattr(features, 'extract_features', None)
    if do is None: out, who = features.run(model, inputs, stop=cut), 'run'
    else:
        words = inspect.signature(do).parameters
        out, who = do(model, inputs, **{next((w for w in ('cut', 'stop', 'stage') if w in words), 'cut'): cut}), 'extract_features'
    return who, list(out.shape), str(out.dtype)


def inside(args):
    "The measurement, in a process that has done nothing else."
    import torch
    from common import peak

    from transfer_course.backbones import attach_head, load_backbone
    torch.set_num_threads(args.threads)
    model = attach_head(load_backbone('pocket-resnet', verbose=False), ['one', 'other'])
    extract(model, Made(2, args.size), args.cut)     # what the first call alone takes is the library's, not the features'
    before, start = peak(), time.perf_counter()
    who, shape, dtype = extract(model, Made(args.pictures, args.size), args.cut)
    facts = dict(pictures=args.pictures, size=args.size, cut=args.cut, by=who, shape=shape, dtype=dtype, seconds=round(time.perf_counter() - start, 1),
                 megabytes=dict(model=round(before), peak=round(peak()), above=round(peak() - before)))
    print(json.dumps(facts | dict(threads=args.threads, torch=torch.__version__.split('+')[0])))


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--pictures', type=int, default=20_000); p.add_argument('--size', type=int, default=128)
    p.add_argument('--cut', default='head', help='stage below which features are taken')
    p.add_argument('--threads', type=int, default=os.cpu_count() or 1)
    p.add_argument('--out', type=Path, default=Path(__file__).with_name('memory.json'))
    p.add_argument('--inside', action='store_true', help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.inside: return inside(args)
    with tempfile.TemporaryDirectory() as cache:
        words = [f'--{k}={getattr(args, k)}' for k in ('pictures', 'size', 'cut', 'threads')]
        done = subprocess.run([sys.executable, __file__, '--inside', *words], stdout=subprocess.PIPE, text=True, check=True,
                              env=os.environ | dict(OMP_NUM_THREADS=str(args.threads), CUDA_VISIBLE_DEVICES='', XDG_CACHE_HOME=cache))
    facts = json.loads(done.stdout.strip().splitlines()[-1])
    args.out.write_text(json.dumps(facts, indent=1) + '\n', encoding='utf-8')
    mb = facts['megabytes']
    print(f'{facts["pictures"]:,} pictures of {facts["size"]} pixels below {facts["cut"]} by {facts["by"]}: {facts["shape"]} {facts["dtype"]}, '
          f'peak {mb["above"]:,} MB above the {mb["model"]:,} MB of the process with its model; {"less" if mb["above"] < 1000 else "NOT less"} than 1 GB.')


if __name__ == '__main__': main()
