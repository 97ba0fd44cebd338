"""The race: every contestant in turn, in a fresh process, on the same pictures, the same network and the same machine.

    python benchmarks/race.py --data cats_and_dogs              all jobs, 3 turns; goes on where it was stopped
    python benchmarks/race.py --data cats_and_dogs --jobs features last --who ours tutorial --turns 1
    python benchmarks/race.py --table                           print the table, draw race.png"""
import argparse, json, os, subprocess, sys, tempfile, time
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
ROOT, RESULTS, WORK = HERE.parent, HERE/'results.json', HERE/'_work'
CONTESTANTS = dict(
    machine=['profile'],
    features=['ours', 'tutorial', 'fastai', 'lightning', 'keras', 'keras+once'],
    last=['ours', 'ours+augment', 'tutorial', 'fastai', 'lightning', 'keras'],
    full=['ours', 'ours+growing', 'tutorial', 'tutorial+bf16', 'tutorial+bf16+b32', 'fastai', 'lightning', 'keras', 'keras+bf16'],
    text=['ours', 'trainer'])
SCRIPTS = dict(profile='profile_step.py', ours='ours.py', tutorial='tutorial.py', fastai='fastai_.py', lightning='lightning_.py', keras='keras_.py',
               trainer='trainer_.py')
PEERS = 'torch', 'torchvision', 'fastai', 'lightning', 'keras', 'transformers'


class RaceError(RuntimeError):
    "The race can't go on; the message says why and what to do."


def parser():
    p = argparse.ArgumentParser(description='Race the course against its peers; what is done is kept and skipped.',
                                epilog='Seconds count from files on disk to a trained model, decoding included, imports not.')
    p.add_argument('--data', type=Path, help='folder with train/ and test/, each with a folder a class')
    p.add_argument('--reviews', type=Path, help='hutto_ICWSM_2014.tar.gz, for the job text')
    p.add_argument('--jobs', nargs='+', choices=CONTESTANTS, default=list(CONTESTANTS), help='default: all')
    p.add_argument('--who', nargs='+', metavar='NAME', help='contestants, such as ours tutorial+bf16; default: all')
    p.add_argument('--turns', type=int, default=3, help='how often each runs; turn i has split and seed i (default 3)')
    p.add_argument('--epochs', type=int, default=10, help='in all, for every contestant (default 10)')
    p.add_argument('--head-epochs', type=int, default=1, help='of them, on the head alone where a recipe begins so (default 1)')
    p.add_argument('--size', type=int, default=128, help='pixels a side (default 128)')
    p.add_argument('--limit', type=int, help='training pictures, for a trial')
    p.add_argument('--threads', type=int, default=os.cpu_count() or 1, help='of matrix products (default: all cores)')
    p.add_argument('--patience', type=int, default=3600, help='seconds after which a run is given up (default 3600)')
    p.add_argument('--results', type=Path, default=RESULTS, help='file of results (default benchmarks/results.json)')
    p.add_argument('--fresh', action='store_true', help='begin a new file of results')
    p.add_argument('--table', action='store_true', help='print the table, write it as Markdown and draw the figure, from the results there are')
    return p


def schedule(jobs, turns, who=None):
    "List (job, contestant, turn) in the order of running: turn by turn, and within a job each turn starts with another contestant."
    out = []
    for turn in range(turns):
        for job in jobs:
            names = CONTESTANTS[job]
            names = [n for n in names[turn % len(names):] + names[:turn % len(names)] if not who or n in who or job == 'machine']
            out += [(job, name, turn) for name in names]
    return out


def versions():
    "Which libraries took part."
    found = {}
    for name in PEERS:
        try: found[name] = version(name).split('+')[0]
        except PackageNotFoundError: pass
    return found


def machine(threads):
    "What the race ran on, without a word on whose machine it is."
    try: cpu = next(x.split(':')[1].strip() for x in Path('/proc/cpuinfo').read_text().splitlines() if x.startswith('model name'))
    except (OSError, StopIteration): cpu = ''
    return dict(cpu=cpu, cores=os.cpu_count(), threads=threads, python=sys.version.split()[0], **versions())


def new_results(args):
    settings = dict(data=args.data.resolve().name if args.data else None, size=args.size, epochs=args.epochs, head_epochs=args.head_epochs, limit=args.limit)
    return dict(question='How long, how much memory and how good, from files on disk to a trained model?', command='make bench DATA=' +
                (settings['data'] or 'FOLDER'), date=date.today().isoformat(), machine=machine(args.threads), settings=settings, runs=[])


def read_results(path): return json.loads(Path(path).read_text(encoding='utf-8'))


def save(path, results):
    "Write the file of results, whole or not at all."
    part = Path(path).with_suffix('.part')
    part.write_text(json.dumps(results, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    os.replace(part, path)


def open_results(args):
    "The results so far, or new ones. Raises RaceError where those on disk belong to another race."
    fresh = new_results(args)
    if args.fresh or not args.results.is_file(): return fresh
    old = read_results(args.results)
    for what in 'settings', 'machine':
        other = [k for k in fresh[what] if old[what].get(k) != fresh[what][k] and not (k == 'data' and fresh[what][k] is None)]
        if other:
            raise RaceError(f'{args.results.name} is of another race: {other[0]} was {old[what].get(other[0])!r} and is {fresh[what][other[0]]!r}; '
                            'give the same again, name another file with --results, or begin anew with --fresh.')
    return old


def time_left(runs, todo):
    "Seconds that `todo` may take, by what like runs took, or None before anything has run."
    def walls(**want): return [r['wall'] for r in runs if 'wall' in r and all(r[k] == v for k, v in want.items())]
    guesses = [walls(job=j, who=w) or walls(job=j) or walls() for j, w, _ in todo]
    return sum(median(g) if len(g) else 0 for g in guesses) if all(guesses) else None


def minutes(seconds): return 'unknown' if seconds is None else f'{seconds:.0f} s' if seconds < 120 else f'{seconds / 60:.0f} min'


def environment(threads, cache):
    "What a contestant sees: the given threads, no accelerator, no cache of an earlier run."
    env = {k: v for k, v in os.environ.items() if k not in ('OMP_WAIT_POLICY', 'IN_TEST')}
    paths = [str(ROOT), *filter(None, [env.get('PYTHONPATH')])]
    return env | dict(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads), CUDA_VISIBLE_DEVICES='', XDG_CACHE_HOME=str(cache), HF_HUB_OFFLINE='1',
                      TOKENIZERS_PARALLELISM='false', PYTHONPATH=os.pathsep.join(paths), PYTHONWARNINGS='ignore')


def prepare(args, job, turn):
    "Make the folder that contestants of this turn read, in a process of its own, outside every clock. Returns its path."
    what = 'texts' if job == 'text' else 'pictures'
    source = args.reviews if job == 'text' else args.data
    folder = WORK/f'{what}-{source.name.split(".")[0]}-{args.size}-{args.limit or "all"}-{turn}'
    if (folder/'files.json').is_file(): return folder
    WORK.mkdir(exist_ok=True)
    code = ('import sys, common; what, data, folder, size, seed, limit = sys.argv[1:]; more = dict(size=int(size)) if what == "pictures" else {}; '
            'getattr(common, "prepare_" + what)(data, folder, seed=int(seed), limit=int(limit) or None, **more)')
    words = [what, source.resolve(), folder, args.size, turn, args.limit or 0]
    done = subprocess.run([sys.executable, '-c', code, *map(str, words)], cwd=HERE, env=environment(args.threads, WORK), capture_output=True, text=True)
    if done.returncode: raise RaceError(f'The {what} of turn {turn + 1} could not be prepared: {last_line(done.stderr)}')
    return folder


def last_line(text): return (text.strip().splitlines() or ['it said nothing'])[-1][:300]


def run(args, job, who, turn):
    "Run one contestant once. Returns its result as a dict; 'error' in it says what went wrong."
    name, *variant = who.split('+')
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, 'out.json')
        words = [HERE/SCRIPTS[name], '--threads', args.threads, '--size', args.size, '--out', out]
        if job == 'machine': words += ['--pictures', args.limit or 960]
        else: words += ['--job', job, '--data', prepare(args, job, turn), '--variant', '+'.join(variant), '--epochs', args.epochs,
                        '--head-epochs', args.head_epochs, '--seed', turn]
        start = time.perf_counter()
        try:
            done = subprocess.run([sys.executable, *map(str, words)], cwd=folder, env=environment(args.threads, Path(folder, 'cache')), timeout=args.patience,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace')
            result = json.loads(out.read_text(encoding='utf-8')) if done.returncode == 0 else dict(error=last_line(done.stdout))
        except subprocess.TimeoutExpired: result = dict(error=f'it took more than {args.patience} s')
    return dict(job=job, who=who, turn=turn, wall=round(time.perf_counter() - start, 1)) | result


def race(args):
    "Run all that is not yet done. Returns the number of failures."
    results, begun = open_results(args), time.perf_counter()
    plan = schedule(args.jobs, args.turns, args.who)
    if not args.reviews: plan = [p for p in plan if p[0] != 'text']
    if not args.data and any(p[0] not in ('text', 'machine') for p in plan):
        raise RaceError('The race needs photographs: give --data FOLDER with train/ and test/, each with a folder a class.')
    done = {(r['job'], r['who'], r['turn']) for r in results['runs']}
    todo, failures = [p for p in plan if p not in done], 0
    print(f'{len(plan) - len(todo)} of {len(plan)} runs are done, {args.threads} threads, time left: {minutes(time_left(results["runs"], todo))}', flush=True)
    for i, (job, who, turn) in enumerate(todo):
        row = run(args, job, who, turn)
        if 'error' in row: failures += 1; says = f'FAILED: {row["error"]}'
        else:
            results['runs'].append(row); save(args.results, results)
            says = f'{row["seconds"]:7.1f} s' + (f', {row["accuracy"]:.1%}, {row["memory"]:,} MB' if 'accuracy' in row else '')
        left = minutes(time_left(results['runs'], todo[i + 1:]))
        print(f'[{len(plan) - len(todo) + i + 1}/{len(plan)}] turn {turn + 1} {job:8} {who:18} {says}; time left: {left}', flush=True)
    print(f'{len(todo) - failures} runs in {minutes(time.perf_counter() - begun)}' + (f'; {failures} failed, run the same again' if failures else ''))
    return failures


def main(argv=None):
    args = parser().parse_args(argv)
    try:
        names = {n for group in CONTESTANTS.values() for n in group}
        strange = [n for n in args.who or [] if n not in names]
        if strange: raise RaceError(f'There is no contestant {strange[0]!r}; there are {", ".join(sorted(names))}.')
        if not 0 <= args.head_epochs < args.epochs:
            raise RaceError(f'--head-epochs is {args.head_epochs} of {args.epochs} epochs: leave at least one for the rest of the network.')
        failures = 0 if args.table else race(args)
        if not args.results.is_file(): raise RaceError(f'There are no results in {args.results.name} yet: run the race first.')
        sys.path[:0] = [str(HERE), str(ROOT)]
        from report import figure, table
        results = read_results(args.results)
        if results['runs']:
            text = table(results); print(text); args.results.with_suffix('.md').write_text(f'# What the race gave\n\n{text}\n', encoding='utf-8')
            figure(results, args.results.with_name(args.results.stem.replace('results', 'race') + '.png'))
        return 1 if failures else 0
    except RaceError as e: print(e, file=sys.stderr)
    except KeyboardInterrupt: print('Stopped; what is done is kept, the same command goes on.', file=sys.stderr)
    return 1


if __name__ == '__main__': sys.exit(main())
