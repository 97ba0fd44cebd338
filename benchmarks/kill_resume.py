"""Kill trainings at random moments with SIGKILL, go on from their checkpoints, and compare the weights bit for bit.

    python benchmarks/kill_resume.py                        20 kills; writes nbs/results/kill_resume.json
    python benchmarks/kill_resume.py --kills 4 --quick --out x.json

Every life is a process of its own. The plan uses everything that has a state: dropout, crops, mixing, a moving average, patience.
"""
import argparse
import json
import os
import random
import signal
import tempfile
import time
from datetime import date
from pathlib import Path

from safetensors import safe_open

from transfer_course.backbones import attach_head, load_backbone
from transfer_course.backstage.assets import results_path
from transfer_course.backstage.measurements import machine
from transfer_course.tasks import load_pets
from transfer_course.training import Phase, Plan, _digest, fit

OPTIONS = dict(batch=8, schedule='one-cycle', dropout=.3, mixup=.3, average=.9, patience=3)


def live(task, plan, checkpoint, out):
    "In a process of its own: train to the end and write the digest of weights, buffers and losses. Returns the process id."
    pid = os.fork()
    if pid: return pid
    status = 1
    try:
        model = attach_head(load_backbone('pocket-resnet', verbose=False), task)
        history = fit(model, task, plan, progress=False, device='cpu', checkpoint=checkpoint)
        losses = history.table.drop(columns='seconds').to_json(double_precision=15)
        out.write_text(_digest(model.state_dict(), losses, str(history.kept), history.stopped))
        status = 0
    finally: os._exit(status)


def epochs_in(checkpoint):
    "How many epochs the checkpoint of a killed training holds."
    for path in (checkpoint, checkpoint.with_name(checkpoint.name + '.previous')):
        if path.exists():
            with safe_open(path, 'pt') as f: return len(json.loads(f.metadata()['facts'])['history']['rows'])
    return 0


def trial(task, plan, folder, moment, want):
    "Kill one training after `moment` seconds, go on, and compare. None where it ended before the kill."
    checkpoint, out = folder/'run.safetensors', folder/'digest.txt'
    for path in folder.iterdir(): path.unlink()
    pid = live(task, plan, checkpoint, out)
    time.sleep(moment); os.kill(pid, signal.SIGKILL)
    if not os.WIFSIGNALED(os.waitpid(pid, 0)[1]): return None
    epochs = epochs_in(checkpoint)
    pid = live(task, plan, checkpoint, out)
    if os.waitpid(pid, 0)[1] or checkpoint.exists(): raise SystemExit('A resumed training failed, or left its checkpoint behind.')
    return dict(killed_after_seconds=round(moment, 3), epochs_in_checkpoint=epochs, identical=out.read_text() == want)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--quick', action='store_true', help='a smaller task')
    parser.add_argument('--seed', type=int, help='of the moments; a new one each time if not given')
    parser.add_argument('--out', type=Path, help='results file; nbs/results/kill_resume.json if not given')
    args = parser.parse_args(argv)
    chance, rows, tries = random.Random(args.seed), [], 0
    task = load_pets('drawn', *((24, 12, 2, 48) if args.quick else (80, 40, 2, 64)), verbose=False)
    plan = Plan('killed', [Phase(3, -1, 1e-2, augment=False), Phase(3 if args.quick else 5, 'layer4' if args.quick else None, 1e-3, .7)], **OPTIONS)
    for split in (task.train, task.valid): len(split.inputs)      # drawn here, before any process is forked
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder); began = time.perf_counter()
        if os.waitpid(live(task, plan, None, folder/'digest.txt'), 0)[1]: raise SystemExit('The undisturbed training failed.')
        span, want = time.perf_counter() - began, (folder/'digest.txt').read_text()
        while len(rows) < args.kills and (tries := tries + 1) < 5 * args.kills:
            row = trial(task, plan, folder, chance.uniform(.02, 1.1) * span, want)
            if row: rows.append(row); print(f'kill {len(rows)}: {row}', flush=True)
    identical = sum(r['identical'] for r in rows)
    record = dict(question='Does a training that was killed and resumed end with the weights of an undisturbed one?',
                  command='python benchmarks/kill_resume.py' + (' --quick' if args.quick else ''), date=date.today().isoformat(), machine=machine(),
                  plan=repr(plan), undisturbed_seconds=round(span, 2), kills=len(rows), identical=identical, rows=rows)
    out = args.out or results_path('kill_resume.json', new=True)
    part = out.with_name(out.name + '.part'); part.write_text(json.dumps(record, indent=1) + '\n', encoding='utf-8'); os.replace(part, out)
    print(f'{identical} of {len(rows)} killed trainings ended with the same bits')
    return 0 if identical == len(rows) == args.kills else 1


if __name__ == '__main__': raise SystemExit(main())
