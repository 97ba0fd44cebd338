"""What all contestants share: the split, the network, the clock, the memory and the evaluator.

A contestant is a file with a function `train(setup) -> Trained` that ends in `main(train)`. Its imports come before the clock starts."""
import argparse, json, os, re, resource, shutil, sys, tarfile, time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np

JOBS = dict(features='feature extraction', last='fine-tuning the last stage', full='full fine-tuning', text='fine-tuning on reviews')
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)   # of red, green and blue, on a scale from 0 to 1
SIDES = 'negative', 'neutral', 'positive'


@dataclass
class Setup:
    "What one run is about. Everything a contestant may know."
    job: str              # one of JOBS
    data: Path            # folder made by `prepare_pictures` or `prepare_texts`
    variant: tuple = ()   # words after the contestant's name: 'bf16', 'b32', 'once', 'augment', 'growing'
    size: int = 128       # pixels a side
    epochs: int = 10      # in all
    head_epochs: int = 1  # of them, those that train the head alone where a recipe begins so
    seed: int = 0         # of the head, the order and the augmentation
    threads: int = 1      # of matrix products

    @property
    def workers(self): return min(4, os.cpu_count() or 1)   # that decode pictures, where a recipe has them
    @property
    def files(self): return json.loads((self.data/'files.json').read_text(encoding='utf-8'))


@dataclass
class Trained:
    "What a contestant hands back when the clock stops."
    scores: Callable          # uint8 [n, size, size, 3] or a list of texts -> scores [n, classes]
    own: Callable = None      # list of files -> scores [n, classes], prepared as the contestant prepares its validation pictures
    note: str = ''            # what the recipe was, in a few words
    facts: dict = field(default_factory=dict) # anything else worth keeping, JSON-ready


def network(setup, classes=2):
    "The pretrained pocket-resnet as a plain torchvision ResNet with a fresh classifier."
    from safetensors.torch import load_file
    from torchvision.models.resnet import BasicBlock, ResNet
    net = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=classes)
    found = net.load_state_dict(load_file(setup.data/'resnet.safetensors'), strict=False)
    assert found.missing_keys == ['fc.weight', 'fc.bias'] and not found.unexpected_keys, found
    return net


def resnet_state():
    "The weights that `load_backbone` gives, under the names of a torchvision ResNet."
    from transfer_course.backbones import load_backbone
    stages = load_backbone('pocket-resnet', verbose=False).stages.state_dict()
    return {k.removeprefix('stem.'): v.contiguous() for k, v in stages.items()}


def normalised(pictures):
    "uint8 [n, h, w, 3] -> float32 [n, 3, h, w] as the weights ask for."
    import torch
    x = torch.as_tensor(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float().div(255)
    return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def plain(net):
    "Scores of a torch network that takes normalised pictures, in fp32 and inference mode."
    import torch
    def scores(pictures):
        net.eval()
        with torch.no_grad(): return torch.cat([net(normalised(pictures[i:i + 100])) for i in range(0, len(pictures), 100)]).float().numpy()
    return scores


def from_files(net, transform):
    "Scores of a torch network on files that `transform` turns into tensors."
    import torch
    from torchvision.datasets.folder import default_loader
    def scores(files):
        net.eval()
        with torch.no_grad():
            return torch.cat([net(torch.stack([transform(default_loader(f)) for f in files[i:i + 100]])) for i in range(0, len(files), 100)]).numpy()
    return scores


def peak(who='self'):
    "Greatest memory so far in MB: of this process, or of the biggest of its finished children."
    unit = 1 if sys.platform == 'darwin' else 1024
    if who == 'children': return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e6
    try: return int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1]) * 1024 / 1e6   # ru_maxrss begins with the parent's
    except (OSError, TypeError): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def write_json(path, what, **how):
    "Write a JSON file, whole or not at all."
    part = Path(path).with_suffix('.part')
    part.write_text(json.dumps(what, ensure_ascii=False, **how) + '\n', encoding='utf-8')
    os.replace(part, path)


def _link(source, target):
    "Make `target` another name of the file `source`, or a copy where links are not to be had."
    target.parent.mkdir(parents=True, exist_ok=True)
    try: target.symlink_to(source)
    except OSError: shutil.copy(source, target)


def prepare_pictures(data, folder, size=128, seed=0, limit=None):
    """Split the photographs in `data` and lay the splits out as folders of class folders that every library can open.

    `folder/pictures` has train and valid, and of test only one picture a class, since `from_folder` wants a test split and no
    contestant shall decode the others inside its clock. `limit` keeps that many training pictures, a quarter of it for valid."""
    from safetensors.torch import save_file

    from transfer_course.tasks import from_folder
    data, folder, part = Path(data).expanduser().resolve(), Path(folder), Path(f'{folder}.part')
    task = from_folder(data, n_train=limit, size=size, seed=seed, verbose=False)
    splits = dict(train=task.train, valid=task.valid, test=task.test)
    if limit: splits |= {k: splits[k].subset(range(min(len(splits[k]), n))) for k, n in (('valid', max(4, limit // 4)), ('test', max(4, limit // 2)))}
    for old in folder, part: shutil.rmtree(old, ignore_errors=True)
    for name, split in splits.items():
        keep = range(len(split)) if name != 'test' else [list(split.labels).index(c) for c in range(len(task.classes))]
        for i in keep: _link(data/split.ids[i], part/'pictures'/name/task.classes[split.labels[i]]/split.ids[i].replace('/', '_'))
    np.save(part/'test.npy', splits['test'].inputs)
    save_file(resnet_state(), part/'resnet.safetensors')
    facts = dict(classes=task.classes, labels=splits['test'].labels.tolist(), test=[str(data/i) for i in splits['test'].ids],
                 sizes={k: len(v) for k, v in splits.items()})
    write_json(part/'files.json', facts)
    os.replace(part, folder)


def read_ratings(archive):
    "Product-review sentences and their side, by review, from the VADER archive: rated above 0.5, below -0.5, or between."
    with tarfile.open(archive) as tar:
        member = next(m for m in tar.getmembers() if m.name.endswith('amazonReviewSnippets_GroundTruth.txt'))
        rows = [line.split('\t', 2) for line in tar.extractfile(member).read().decode('utf-8', 'replace').splitlines() if line.count('\t') >= 2]
    return [(key.split('_')[0], text.strip(), int(float(mean) > .5) + int(float(mean) >= -.5)) for key, mean, text in rows]


def prepare_texts(archive, folder, seed=0, limit=None):
    "Split review sentences by review: a fifth for test, always the same; a tenth for valid."
    folder = Path(folder)
    def share(*key): return int(sha256('\0'.join(map(str, key)).encode()).hexdigest()[:8], 16) / 16**8
    splits = dict(train=[], valid=[], test=[])
    for review, text, side in read_ratings(archive):
        splits['test' if share('test', review) < .2 else 'valid' if share(seed, review) < .1 else 'train'].append((text, side))
    if limit: splits = {k: v[:limit] for k, v in splits.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder/'files.json', dict(classes=SIDES, labels=[y for _, y in splits['test']], sizes={k: len(v) for k, v in splits.items()}, **splits))


def tell(setup, trained, seconds, memory):
    "One run as plain data: the figures of the clock, and the scores of the test split, which is read here for the first time."
    files = setup.files
    inputs = [t for t, _ in files['test']] if setup.job == 'text' else np.load(setup.data/'test.npy')
    labels, guesses = np.array(files['labels']), np.asarray(trained.scores(inputs)).argmax(1)
    own = {}
    if trained.own: own = dict(own_accuracy=float((np.asarray(trained.own(files['test'])).argmax(1) == labels).mean()))
    return dict(seconds=round(seconds, 2), accuracy=float((guesses == labels).mean()), **own, **memory, note=trained.note, facts=trained.facts,
                sizes=files['sizes'], predictions=''.join(map(str, guesses)), labels=''.join(map(str, labels)))


def parser():
    "The words that every contestant understands."
    p = argparse.ArgumentParser(description='Run one contestant of the race once; race.py calls this.')
    p.add_argument('--job', choices=JOBS, required=True)
    p.add_argument('--data', type=Path, required=True, help='folder made by race.py')
    p.add_argument('--variant', default='', help='words joined by +')
    p.add_argument('--out', type=Path, help='JSON file for the result; printed where it is left out')
    for name, default in (('size', 128), ('epochs', 10), ('head-epochs', 1), ('seed', 0), ('threads', os.cpu_count() or 1)):
        p.add_argument(f'--{name}', type=int, default=default)
    return p


def main(train, argv=None):
    "Run `train` under the clock, then read the test split."
    import torch
    args = parser().parse_args(argv)
    words = {k: v for k, v in vars(args).items() if k != 'out'} | dict(variant=tuple(filter(None, args.variant.split('+'))))
    setup = Setup(**words)
    torch.set_num_threads(setup.threads); torch.manual_seed(setup.seed); np.random.seed(setup.seed)
    before, start = peak(), time.perf_counter()
    trained = train(setup)
    seconds = time.perf_counter() - start
    memory = dict(memory=round(peak()), memory_imports=round(before), memory_worker=round(peak('children')))
    result = tell(setup, trained, seconds, memory)
    if args.out: write_json(args.out, result)
    else: print(json.dumps({k: v for k, v in result.items() if k not in ('predictions', 'labels')} | dict(setup=asdict(setup)), indent=1, default=str))
