"""fastai: `vision_learner` with its default head, optimizer and batch, and `fine_tune` with its default rates.

Pictures: `Resize` on each, `aug_transforms()` on batches, as its guide for small sets of pictures has it."""
import torch
from common import Trained, main, network, plain
from fastai.vision.all import ImageDataLoaders, L, Normalize, Resize, accuracy, aug_transforms, imagenet_stats, params, set_seed, vision_learner


def groups(job):
    "Layer groups: fastai's own for ResNets, or a cut below the last stage. The body is conv1, bn1, relu, maxpool, layer1 to layer4."
    border = 7 if job == 'last' else 6
    return lambda m: L(m[0][:border], m[0][border:], m[1:]).map(params)


def learn_by(learn, setup):
    "`fine_tune`; for the last stage the same steps, but thawing one group; for feature extraction one cycle on the head."
    if setup.job == 'features': learn.fit_one_cycle(setup.epochs)
    elif setup.job == 'full': learn.fine_tune(setup.epochs - setup.head_epochs, freeze_epochs=setup.head_epochs)
    else:
        learn.fit_one_cycle(setup.head_epochs, slice(2e-3), pct_start=.99)
        learn.freeze_to(-2)
        learn.fit_one_cycle(setup.epochs - setup.head_epochs, slice(1e-3 / 100, 1e-3), pct_start=.3, div=5.)


def train(setup):
    set_seed(setup.seed)
    dls = ImageDataLoaders.from_folder(setup.data/'pictures', item_tfms=Resize(setup.size),
                                       batch_tfms=[*aug_transforms(), Normalize.from_stats(*imagenet_stats)], bs=min(64, len_train(setup)))
    learn = vision_learner(dls, lambda pretrained: network(setup), metrics=accuracy, splitter=groups(setup.job))
    with learn.no_bar(), learn.no_logging(): learn_by(learn, setup)
    return Trained(plain(learn.model), own(learn), f'{dls.bs} a step, {dls.train.num_workers} workers')


def len_train(setup): return setup.files['sizes']['train']   # fastai drops the last batch, which must not be the only one


def own(learn):
    "Scores of files through fastai's own test loader."
    def scores(files):
        with learn.no_bar(), learn.no_logging(), torch.no_grad(): return learn.get_preds(dl=learn.dls.test_dl(list(files)))[0].numpy()
    return scores


if __name__ == '__main__': main(train)
