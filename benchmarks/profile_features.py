"""Where the seconds of our feature extraction go, from files on disk to a trained head; what is left when all but the unavoidable is free.

    python benchmarks/profile_features.py --data cats_and_dogs      adds `features_profile` to benchmarks/results.json

Each turn is a fresh process, as in the race. Decoding the files and running the network once over them is what every contestant must do
that caches; the rest is what an engine could still save."""
import argparse, json, os, subprocess, sys, tempfile, time
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
PARTS = dict(decode='reading and decoding the files', load='network and its weights', frozen='the frozen part, once over train and valid',
             head='training the head', rest='all else')


def inside(data, size, seed, threads):
    "One turn; prints its parts in seconds."
    import torch

    from transfer_course.backbones import attach_head, load_backbone
    from transfer_course.tasks import from_folder
    from transfer_course.training import feature_extraction, fit
    torch.set_num_threads(threads); clock, out = time.perf_counter, {}
    begun = now = clock()
    task = from_folder(data, size=size, seed=seed, verbose=False); _ = task.train.inputs, task.valid.inputs
    out['decode'], now = clock() - now, clock()
    model = attach_head(load_backbone('pocket-resnet', verbose=False), task, seed=seed)
    out['load'] = clock() - now
    history = fit(model, task, feature_extraction(), seed=seed, progress=False); phase, = history.phases
    if not phase['once']: raise SystemExit(f'The frozen part was not computed once: {phase["why"]}.')
    out |= dict(frozen=phase['prepare'], head=phase['seconds'])
    out['whole'] = clock() - begun; out['rest'] = out['whole'] - sum(out[k] for k in PARTS if k != 'rest')
    print(json.dumps(out))


def lines(profile, fastest=None):
    "The profile as Markdown; `fastest`: seconds of the fastest peer."
    least = profile['decode'] + profile['frozen']
    rows = [f'| {words} | {profile[k]:.2f} | {profile[k] / profile["whole"]:.0%} |' for k, words in PARTS.items()]
    says = f'Medians of {profile["turns"]} turns. With all else free, decoding and the frozen part would still take {least:.1f} s'
    says += f', and the fastest peer {fastest / least:.1f} times as long' if fastest else ''
    return [f'{says}.', '', '| part of feature extraction | s | share |', '|---|---:|---:|', *rows]


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--data', type=Path, required=True, help='folder with train/ and test/, each with a folder a class')
    p.add_argument('--size', type=int, default=128); p.add_argument('--turns', type=int, default=5)
    p.add_argument('--threads', type=int, default=os.cpu_count() or 1)
    p.add_argument('--results', type=Path, default=HERE/'results.json')
    p.add_argument('--inside', type=int, help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.inside is not None: return inside(args.data, args.size, args.inside, args.threads)
    sys.path.insert(0, str(HERE)); import race
    words = [sys.executable, __file__, f'--data={args.data.resolve()}', f'--size={args.size}', f'--threads={args.threads}']
    with tempfile.TemporaryDirectory() as cache:
        env = race.environment(args.threads, cache)
        def turn(i): return subprocess.run([*words, f'--inside={i}'], env=env, check=True, capture_output=True, text=True).stdout
        turns = [json.loads(turn(i).splitlines()[-1]) for i in range(args.turns)]
    profile = dict(turns=args.turns) | {k: round(median(t[k] for t in turns), 3) for k in turns[0]}
    results = race.read_results(args.results); results['features_profile'] = profile; race.save(args.results, results)
    print('\n'.join(lines(profile)))


if __name__ == '__main__': main()
