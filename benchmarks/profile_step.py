"""A training step of full fine-tuning: how near it comes to the machine's own best matrix product, and what takes the rest.

    python benchmarks/profile_step.py            writes benchmarks/profile.json

The engine itself is measured, not a copy of it: `fit` runs epochs on random pictures. Arithmetic does not depend on what they show."""
import argparse, os, time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
import torch
from common import write_json
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

import transfer_course.training as training
from transfer_course.backbones import attach_head, load_backbone
from transfer_course.features import autocast
from transfer_course.freezing import freeze_until
from transfer_course.tasks import Split, Task

# part -> words in the names of operations or of the ranges around them; the first that fits counts
PARTS = {
    'augmentation': ('part: augment', 'grid_sampler', 'affine_grid'),
    'preprocessing': ('part: preprocess',),
    'optimizer': ('optimizer.step', '_fused_adam', 'zero_grad'),
    'gradient clipping': ('part: clip', '_foreach_norm', 'linalg_vector_norm'),
    'convolutions, backward': ('convolution_backward', 'convolutionbackward'),
    'convolutions, forward': ('conv',),
    'matrix products of the head': ('addmm', 'aten::mm', 'linear', 'matmul'),
    'norms, forward and backward': ('batch_norm', 'batchnorm', 'layer_norm'),
    'activations, sums and pooling': ('relu', 'threshold', 'clamp_min', 'pool', 'aten::add', 'aten::mean', 'aten::mul'),
    'loss': ('cross_entropy', 'log_softmax', 'nll_loss', 'isfinite'),
    'copies and casts': ('copy', 'clone', 'contiguous', 'aten::to', 'cat', 'index', 'fill', 'zero_', 'empty'),
}


def matrix_rate(
    dtype,        # torch.float32 or torch.bfloat16
    seconds=1.5,  # spent on each size
    sizes=(512, 1024, 2048, 3072),
):                # GFLOP/s
    "The best rate of a square matrix product, over sizes and repeats."
    best = 0.
    for n in sizes:
        a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
        a @ b; until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            start = time.perf_counter(); a @ b
            best = max(best, 2 * n**3 / (time.perf_counter() - start) / 1e9)
    return best


def noise_task(n, size, valid=4):
    "A task of `n` random pictures, with hardly anything to validate on."
    rng = np.random.default_rng(0)
    def part(name, n):
        return Split(name, rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8), np.arange(n) % 2, [f'{name}{i}' for i in range(n)])
    return Task('noise', 'pictures', ['one', 'other'], part('train', n), part('valid', valid), part('test', valid))


def new_model(task): return attach_head(load_backbone('pocket-resnet', verbose=False), task)


def plan_of(epochs): return training.fine_tuning(epochs, head_epochs=0)


def multiply_adds(size, batch=8):
    "Multiply-adds of one picture: (forward, forward and backward with everything trained)."
    model = new_model(['one', 'other']); freeze_until(model, None, 'keep')
    x, model = torch.randn(batch, 3, size, size), model.train()
    with FlopCounterMode(display=False) as forward: y = model(x)
    with FlopCounterMode(display=False) as backward: y.sum().backward()
    return forward.get_total_flops() / 2 / batch, (forward.get_total_flops() + backward.get_total_flops()) / 2 / batch


def part_of(event):
    "The part of a step to which an operation's own time belongs: by the ranges around it, then by its name."
    names, e = [], event
    while e is not None: names.append(e.name.lower()); e = e.cpu_parent
    for part, words in PARTS.items():
        if any(w in n for w in words if w.startswith('part:') or w == 'optimizer.step' for n in names): return part
    for name in names:
        for part, words in PARTS.items():
            if any(w in name for w in words): return part
    return 'other operations'


@contextmanager
def marked_parts():
    "While open, the profiler sees where augmentation and clipping begin and end."
    with patch.object(training, 'augment', mark('augment', training.augment)), \
         patch.object(torch.nn.utils, 'clip_grad_norm_', mark('clip', torch.nn.utils.clip_grad_norm_)): yield


def mark(name, f):
    "`f` inside a range that the profiler sees."
    def marked(*args, **kw):
        with record_function(f'part: {name}'): return f(*args, **kw)
    return marked


def parts_of_step(task, steps):
    "Milliseconds a step by part, from one profiled epoch; what no operation accounts for is Python and waiting."
    model = new_model(task); model.preprocess = mark('preprocess', model.preprocess)
    with marked_parts(), profile(activities=[ProfilerActivity.CPU]) as prof:
        start = time.perf_counter(); training.fit(model, task, plan_of(1), progress=False, device='cpu'); wall = time.perf_counter() - start
    spent = defaultdict(float)
    for e in prof.events(): spent[part_of(e)] += e.self_cpu_time_total / 1e3 / steps
    spent['Python and waiting'] = max(0., wall * 1e3 / steps - sum(spent.values()))
    return dict(sorted(spent.items(), key=lambda kv: -kv[1]))


def measure(pictures, size, epochs=4, seconds=1.5):
    "Everything, as plain data."
    began, task = time.perf_counter(), noise_task(pictures, size)
    rates = {str(d).split('.')[1]: matrix_rate(d, seconds) for d in (torch.float32, torch.bfloat16)}
    forward, whole = multiply_adds(size)
    plan = plan_of(epochs)
    history = training.fit(new_model(task), task, plan, progress=False, device='cpu')
    epoch = median(row['seconds'] for row in history.rows[1:] or history.rows)
    with autocast('cpu'): dtype = 'bfloat16' if torch.is_autocast_enabled('cpu') else 'float32'
    rate = 2 * whole * pictures / epoch / 1e9
    parts = parts_of_step(task, max(1, pictures // plan.batch))
    return dict(seconds=round(time.perf_counter() - began, 1), dtype=dtype, matrix_gflops={k: round(v, 1) for k, v in rates.items()},
                million_multiply_adds=dict(forward=round(forward / 1e6, 1), step=round(whole / 1e6, 1)), pictures_a_second=round(pictures / epoch, 1),
                step_gflops=round(rate, 1), share=round(rate / rates[dtype], 3), batch=plan.batch, size=size, pictures=pictures,
                milliseconds_a_step={k: round(v, 2) for k, v in parts.items()})


def table(m):
    "The measurement as text."
    total = sum(m['milliseconds_a_step'].values())
    rows = [f'| {k} | {v:.1f} | {v / total:.1%} |' for k, v in m['milliseconds_a_step'].items()]
    head = (f'Matrix products: {m["matrix_gflops"]["float32"]:.0f} GFLOP/s in fp32, {m["matrix_gflops"]["bfloat16"]:.0f} in bf16. '
            f'A picture costs {m["million_multiply_adds"]["step"]:.0f} million multiply-adds forward and backward; the step in {m["dtype"]} trains '
            f'{m["pictures_a_second"]:.0f} pictures/s, which is {m["step_gflops"]:.0f} GFLOP/s, {m["share"]:.0%} of the matrix product in the same format.')
    return '\n'.join([head, '', f'| part of a step of {m["batch"]} pictures | ms, while profiled | share |', '|---|---:|---:|', *rows])


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--pictures', type=int, default=960); p.add_argument('--size', type=int, default=128)
    p.add_argument('--threads', type=int, default=os.cpu_count() or 1)
    p.add_argument('--out', type=Path, default=Path(__file__).with_name('profile.json'))
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads); torch.manual_seed(0)
    m = measure(args.pictures, args.size) | dict(threads=args.threads, torch=torch.__version__.split('+')[0])
    write_json(args.out, m, indent=1)
    print(table(m))


if __name__ == '__main__': main()
