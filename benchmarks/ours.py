"""The course's own engine: `from_folder`, `load_backbone`, `attach_head`, `fit`.

Variant `augment`: the last stage with new crops and mirror images in every epoch, which leaves nothing to be computed once.
Variant `growing`: full fine-tuning whose crops are half as wide in the first third of the epochs, three quarters in the second, full in the last."""
from common import Trained, main, plain

from transfer_course.backbones import attach_head, load_backbone
from transfer_course.features import run
from transfer_course.tasks import Split, Task, from_folder
from transfer_course.training import Phase, Plan, feature_extraction, fine_tuning, fit


def plan_of(setup):
    "The plan of a job. Feature extraction runs to convergence on features computed once; the others have equal epochs with the peers."
    head, rest = setup.head_epochs, setup.epochs - setup.head_epochs
    if setup.job == 'features': return feature_extraction() if setup.epochs >= 10 else feature_extraction(setup.epochs)
    if setup.job == 'text': return fine_tuning(min(3, setup.epochs), kind='texts')
    if setup.job == 'full': return fine_tuning(rest, head_epochs=head, sizes=[setup.size * k // 4 for k in (2, 3, 4)] if 'growing' in setup.variant else ())
    phases = [Phase(head, -1, 1e-2, augment=False)] if head else []
    return Plan('last stage', [*phases, Phase(rest, 'layer4', 1e-3, .7, augment='augment' in setup.variant)], statistics='keep')


def sentences(files):
    "The Task of the job text: the splits that every contestant has."
    def split(name):
        texts, labels = zip(*files[name])
        return Split(name, list(texts), labels, range(len(texts)))
    return Task('rated sentences', 'texts', files['classes'], *map(split, ('train', 'valid', 'test')))


def train_on_texts(setup, plan):
    task = sentences(setup.files)
    model = attach_head(load_backbone('minilm', verbose=False), task, seed=setup.seed)
    history = fit(model, task, plan, seed=setup.seed, progress=False)
    return Trained(lambda texts: run(model, texts).numpy(), note=repr(plan), facts=dict(fit_seconds=round(history.seconds, 2)))


def train(setup):
    plan = plan_of(setup)
    if setup.job == 'text': return train_on_texts(setup, plan)
    task = from_folder(setup.data/'pictures', size=setup.size, seed=setup.seed, verbose=False)
    model = attach_head(load_backbone('pocket-resnet', verbose=False), task, seed=setup.seed)
    history = fit(model, task, plan, seed=setup.seed, progress=False)
    return Trained(plain(model), note=repr(plan), facts=dict(fit_seconds=round(history.seconds, 2)))


if __name__ == '__main__': main(train)
