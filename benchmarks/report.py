"""What the results say: medians, intervals, paired differences, the bars of the race, a table and a figure."""
from statistics import median

import numpy as np
from common import JOBS

from transfer_course.backstage.plots import OKABE_ITO
from transfer_course.evaluation import wilson

BY_HAND = 'bf16', 'b32', 'augment', 'growing'    # variants that are not a peer's, or our, way of doing the job
NAMES = dict(ours='transfer_course', tutorial='PyTorch tutorial', fastai='fastai', lightning='Lightning', keras='Keras', trainer='transformers Trainer')
WORDS = dict(bf16='bf16 by hand', b32='32 a step', once='base run once', augment='augmented', growing='small crops first')
COLOURS = dict(ours='vermilion', tutorial='blue', fastai='green', lightning='purple', keras='orange', trainer='sky')


def label(who):
    name, *words = who.split('+')
    return NAMES[name] + (f' ({", ".join(WORDS[w] for w in words)})' if words else '')


def is_peer(who): return not who.startswith('ours') and not set(who.split('+')) & set(BY_HAND)


def runs_of(results, job, who): return sorted((r for r in results['runs'] if r['job'] == job and r['who'] == who), key=lambda r: r['turn'])


def hits(runs):
    "Right or wrong by run and test picture, as 1 and 0, [turns, pictures]."
    return np.array([[p == y for p, y in zip(r['predictions'], r['labels'])] for r in runs], float)


def paired_difference(ours, theirs, repeats=10_000, seed=0):
    "Accuracy of `ours` less `theirs` on the same test pictures, and its 95% interval by a bootstrap over pictures: (mean, low, high)."
    gap = hits(ours).mean(0) - hits(theirs).mean(0)
    rows = np.random.default_rng(seed).integers(0, len(gap), (repeats, len(gap)))
    return tuple(map(float, (gap.mean(), *np.quantile(gap[rows].mean(1), (.025, .975)))))


def summary(results):
    "One dict a job and contestant, fastest first within a job; ratios and differences are against `ours`."
    out = []
    for job in JOBS:
        names = list(dict.fromkeys(r['who'] for r in results['runs'] if r['job'] == job))
        base, rows = runs_of(results, job, 'ours'), []
        for who in names:
            runs = runs_of(results, job, who); right = hits(runs); n = right.shape[1]
            own = [r['own_accuracy'] for r in runs if 'own_accuracy' in r]
            row = dict(job=job, who=who, turns=len(runs), seconds=median(r['seconds'] for r in runs), all_seconds=[r['seconds'] for r in runs],
                       memory=median(r['memory'] for r in runs),
                       above=median(r['memory'] - r['memory_imports'] for r in runs), worker=median(r['memory_worker'] for r in runs),
                       accuracy=float(right.mean()), interval=wilson(right.mean() * n, n), own=float(np.mean(own)) if own else None, test=n)
            if base and who != 'ours':
                row |= dict(ratio=row['seconds'] / median(r['seconds'] for r in base), difference=paired_difference(base, runs))
            rows.append(row)
        out += sorted(rows, key=lambda r: r['seconds'])
    return out


def bars(results):
    "The demands on the race, each with what was measured: a list of (demand, measured, reached)."
    rows = {(r['job'], r['who']): r for r in summary(results)}
    def fastest(job): return min((r for (j, w), r in rows.items() if j == job and is_peer(w)), key=lambda r: r['seconds'], default=None)
    out = []
    def times(demand, row, least):
        if row and 'ratio' in row: out.append((demand, f'{row["ratio"]:.1f} times ({label(row["who"])})', row['ratio'] >= least))
    tutorial = rows.get(('features', 'tutorial'))
    times('Feature extraction: at least 15 times less time than the tutorial', tutorial, 15)
    times('Feature extraction: at least 3 times less than the fastest peer', fastest('features'), 3)
    for row in [r for (j, w), r in rows.items() if j == 'features' and is_peer(w) and 'difference' in r]:
        mean, low, high = row['difference']
        out.append((f'Feature extraction: accuracy not lower than {label(row["who"])}', f'{points(mean)} points ({points(low)} to {points(high)})', high >= 0))
    times('Last stage: at least 3 times less than the fastest peer', fastest('last'), 3)
    times('Full fine-tuning: at least 2.3 times less than the fastest peer at its defaults', fastest('full'), 2.3)
    peer, growing = fastest('full'), rows.get(('full', 'ours+growing'))
    if peer and growing:
        ratio, gap = peer['seconds'] / growing['seconds'], '{} points ({} to {})'.format(*map(points, growing['difference']))
        out.append(('Full fine-tuning with small crops first, switched on by hand: at least 2.3 times less',
                    f'{ratio:.2f} times ({label(peer["who"])}); full-size crops throughout are more accurate by {gap}', ratio >= 2.3))
    for who in 'keras+bf16', 'tutorial+bf16', 'tutorial+bf16+b32': times(f'Full fine-tuning: not slower than {label(who)}', rows.get(('full', who)), 1)
    times('Reviews: at least 3.3 times less time than the Trainer', trainer := rows.get(('text', 'trainer')), 3.3)
    if trainer and 'difference' in trainer:
        mean, low, high = trainer['difference']
        out.append(('Reviews: accuracy not lower than the Trainer', f'{points(mean)} points ({points(low)} to {points(high)})', high >= 0))
    if machine := [r for r in results['runs'] if r['job'] == 'machine']:
        share = median(r['share'] for r in machine)
        out.append(('A training step at 50% or more of the best matrix product', f'{share:.0%} in {machine[0]["dtype"]}', share >= .5))
    return out


def points(share): return f'{share * 100:+.1f}'


def table(results):
    "The results as Markdown."
    s, m = results['settings'], results['machine']
    sizes = next((r['sizes'] for r in results['runs'] if 'sizes' in r and r['job'] != 'text'), {})
    pictures = ', '.join(f'{n:,} {k}' for k, n in sizes.items())
    out = [f'{m["cpu"] or "CPU"}, {m["threads"]} of {m["cores"]} cores, torch {m.get("torch")}; pictures of {s["size"]} pixels ({pictures}), '
           f'{s["epochs"]} epochs; medians of the turns; {results["date"]}.']
    rows = summary(results)
    for job, words in JOBS.items():
        mine = [r for r in rows if r['job'] == job]
        out += ['', f'**{words[0].upper() + words[1:]}**', '']
        if not mine: out.append('Not yet measured.'); continue
        out += ['| | seconds (least to most, turns) | times ours | peak memory, MB (above imports) | test accuracy (95%) | '
                'ours less theirs, points (95%) | own preparation |', '|---|---:|---:|---:|---:|---:|---:|', *map(_row, mine)]
    if machine := [r for r in results['runs'] if r['job'] == 'machine']:
        import profile_step
        out += ['', '**The machine and our training step**', '', profile_step.table(sorted(machine, key=lambda r: r['share'])[len(machine) // 2])]
    if profile := results.get('features_profile'):
        import profile_features
        peers = [r['seconds'] for r in rows if r['job'] == 'features' and is_peer(r['who'])]
        out += ['', '**Where the seconds of our feature extraction go**', '', *profile_features.lines(profile, min(peers, default=None))]
    out += ['', '| demand | measured | |', '|---|---|---|', *(f'| {d} | {v} | {"reached" if ok else "NOT reached"} |' for d, v, ok in bars(results))]
    return '\n'.join(out)


def _row(r):
    ratio = f'{r["ratio"]:.1f}' if 'ratio' in r else ''
    gap = '{} ({} to {})'.format(*map(points, r['difference'])) if 'difference' in r else ''
    (low, high), least, most = r['interval'], min(r['all_seconds']), max(r['all_seconds'])
    return (f'| {label(r["who"])} | {r["seconds"]:.1f} ({least:.1f} to {most:.1f}, {r["turns"]}) | {ratio} | {r["memory"]:,.0f} ({r["above"]:,.0f}) | '
            f'{r["accuracy"]:.1%} ({low:.1%} to {high:.1%}) | {gap} | {"" if r["own"] is None else format(r["own"], ".1%")} |')


def figure(results, path):
    "Draw seconds on a logarithmic scale, one panel a job, with the test accuracy behind each bar; save it as a PNG."
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    rows = summary(results)
    jobs = [j for j in JOBS if any(r['job'] == j for r in rows)]
    if not jobs: return None
    counts = [sum(r['job'] == j for r in rows) for j in jobs]
    fig, axes = plt.subplots(len(jobs), 1, figsize=(8.5, .36 * sum(counts) + .75 * len(jobs) + .6), layout='constrained', sharex=True, squeeze=False,
                             gridspec_kw=dict(height_ratios=counts))
    for ax, job in zip(axes[:, 0], jobs): _panel(ax, [r for r in rows if r['job'] == job], JOBS[job])
    low, high = min(min(r['all_seconds']) for r in rows), max(max(r['all_seconds']) for r in rows)
    axes[0, 0].set(xscale='log', xlim=(low / 2, high * 9)); axes[0, 0].xaxis.set_major_formatter('{x:g}')
    axes[-1, 0].set_xlabel('seconds from files on disk to a trained model (logarithmic); dots are single turns\n'
                           'beside each bar: median seconds, accuracy on the test split (95% interval)')
    s = results['settings']
    fig.suptitle(f'The race: pocket-resnet on photographs of {s["size"]} pixels, minilm on reviews; CPU threads: {results["machine"]["threads"]}')
    fig.savefig(path, dpi=110); plt.close(fig)
    return path


def _panel(ax, rows, title):
    for y, r in enumerate(rows):
        name, *words = r['who'].split('+')
        by_hand = set(words) & set(BY_HAND)
        ax.barh(y, r['seconds'], color=OKABE_ITO[COLOURS[name]], hatch='///' if by_hand else None, edgecolor='white' if by_hand else 'none', height=.72)
        ax.plot(r['all_seconds'], [y] * r['turns'], 'o', color='black', markersize=2.5)
        low, high = r['interval']
        ax.text(max(r['all_seconds']) * 1.12, y, f'{r["seconds"]:.1f} s, {r["accuracy"]:.1%} ({low:.0%} to {high:.0%})', va='center', fontsize=8)
    ax.set(yticks=range(len(rows)), yticklabels=[label(r['who']) for r in rows])
    ax.set_title(title, loc='left', fontsize=10); ax.invert_yaxis(); ax.tick_params(axis='y', labelsize=8, length=0)
    for side in 'top', 'right': ax.spines[side].set_visible(False)
