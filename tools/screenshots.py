"""Take the screenshots in nbs/images: all four widgets on pocket-resnet and minilm, light and dark.

python tools/screenshots.py [part of a name]; needs Chromium and playwright, takes a few minutes."""
import io
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT/'tests')]

from PIL import Image  # noqa: E402
from views_page import browser, show  # noqa: E402

from transfer_course.backbones import attach_head, load_backbone  # noqa: E402
from transfer_course.studies import Study, compare  # noqa: E402
from transfer_course.tasks import load_pets, load_reviews  # noqa: E402
from transfer_course.training import feature_extraction, fine_tuning, fit, gradual_unfreezing  # noqa: E402
from transfer_course.widgets import BudgetView, DriftView, FreezeExplorer, Snapshots, ThawTimeline  # noqa: E402

OUT = ROOT/'nbs'/'images'
NETWORKS = dict(resnet='pocket-resnet', bert='minilm')


def task_of(which, n=96):
    return load_pets('drawn', n, 32, 2, 64, verbose=False) if which == 'resnet' else load_reviews('written', n, 48, verbose=False)


def model_of(which, task, **more): return attach_head(load_backbone(NETWORKS[which], verbose=False), task, **more)


def explorer(which):
    "Some stages frozen, one open and partly frozen, with measured times and gradients."
    task = task_of(which); e = FreezeExplorer(model_of(which, task, dropout=.2), task)
    e.preset('fine-tuning', len(e.plans['fine-tuning'][1]))
    e.cut('layer3'); e.measure()
    if which == 'resnet': e.opened = ['layer4', 'layer4.0']; e.toggle('layer4.0.conv1')
    else: e.opened = ['layer5', 'layer5.layer']; e.toggle('layer5.layer.attention')
    e.gradients()
    return e


class Enough(Exception):
    "A training was watched long enough."


def timeline(which):
    "In the middle of a training for pictures; for texts with the second phase chosen."
    task = task_of(which, 48); model = model_of(which, task)
    if which == 'bert': return ThawTimeline(gradual_unfreezing(kind='texts'), model)
    view = ThawTimeline(fine_tuning(15, head_epochs=5), model)
    def watch(facts):
        view.follow(facts)
        if facts['epoch'] == 9: raise Enough
    try: fit(model, task, view.plan, progress=False, watch=watch)
    except Enough: return view


def drift(which):
    "After a fine-tuning of the upper stages."
    task = task_of(which); model, seen = model_of(which, task), Snapshots(task.valid.inputs)
    plan = fine_tuning(6, head_epochs=3, start='layer3') if which == 'resnet' else fine_tuning(4, start='layer3', kind='texts')
    fit(model, task, plan, progress=False, watch=seen)
    return DriftView(seen)


def budget(which):
    "The study of lesson 09, and a small one of reviews."
    if which == 'resnet': return BudgetView(Study.load(ROOT/'nbs'/'results'/'cats_and_dogs_study.json'), 100)
    task, plans = load_reviews('written', 300, 60, 90, verbose=False), [feature_extraction(20, kind='texts'), fine_tuning(2, kind='texts')]
    return BudgetView(compare(task, 'minilm', plans, [30, 100, 300], 3, progress=False), 100)


def small(png, limit=95_000):
    "PNG bytes with a palette, as large as fits."
    picture = Image.open(io.BytesIO(png)).convert('RGB')
    for colors in (256, 192, 128, 96, 64):
        out = io.BytesIO(); picture.quantize(colors, dither=Image.Dither.NONE).save(out, 'PNG', optimize=True)
        if out.tell() < limit: break
    return out.getvalue()


def main(only=''):
    with browser() as b:
        for what, make in dict(explorer=explorer, views_timeline=timeline, views_drift=drift, views_budget=budget).items():
            for which in NETWORKS:
                if only not in f'{what}_{which}': continue
                widget = make(which)
                for scheme in ('light', 'dark'):
                    page = show(b, widget, color_scheme=scheme, viewport=dict(width=1080 if what == 'explorer' else 880, height=800))
                    page.add_style_tag(content='button#before, button#after { display: none } main { display: flow-root }')
                    if what == 'views_timeline' and which == 'bert': page.locator('.handle').nth(1).click()
                    page.mouse.move(0, 0); page.wait_for_timeout(500)
                    path = OUT/f'{what}_{which}_{scheme}.png'
                    path.write_bytes(small(page.locator('.tc-shell, .tcv').screenshot()))
                    print(path.name, path.stat().st_size, 'bytes', *page.faults)
                    page.context.close()


if __name__ == '__main__': main(*sys.argv[1:])
