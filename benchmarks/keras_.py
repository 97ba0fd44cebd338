"""Keras 3 on the torch back end, as in its guide "Transfer learning & fine-tuning": the base in inference mode throughout, dropout
and one logit on top, Adam at 1e-3 on the head, then everything at 1e-5.

The base is the same torch network in a `TorchModuleWrapper`, which on this back end is Keras's fastest way. As the guide's pipeline
does, pictures are decoded once, augmented once, and kept. Variant `once`: the guide's "more lightweight workflow": the base runs
once over the data, and a small model trains on what it gave."""
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ['KERAS_BACKEND'] = 'torch'
import keras
import numpy as np
import torch
from common import MEAN, STD, Trained, main, network
from keras import layers
from torch import nn


def load(files, size, threads):
    "Pictures as float32 [n, size, size, 3] from 0 to 255, stretched to squares."
    def one(f): return np.asarray(keras.utils.load_img(f, target_size=(size, size), interpolation='bilinear'), np.float32)
    with ThreadPoolExecutor(threads) as pool: return np.stack(list(pool.map(one, files)))


def split(setup, part):
    "Pictures and labels of a split."
    files = sorted(Path(setup.data, 'pictures', part).glob('*/*'))
    classes = sorted({f.parent.name for f in files})
    return load(files, setup.size, setup.threads), np.array([classes.index(f.parent.name) for f in files], np.float32)


def augment(x):
    "Mirror images and small rotations, one of each picture."
    layer = keras.Sequential([layers.RandomFlip('horizontal'), layers.RandomRotation(.1)])
    return np.concatenate([keras.ops.convert_to_numpy(layer(x[i:i + 64], training=True)) for i in range(0, len(x), 64)])


class Still(layers.TorchModuleWrapper):
    """A wrapped network that stays in inference mode, as the guide promises of a base called with `training=False`.

    Keras 3.15 does not keep that promise: `fit` hands its own `training=True` on through a nested functional model."""
    bf16 = False

    def call(self, x, training=None):
        with torch.autocast('cpu', torch.bfloat16, enabled=self.bf16): return super().call(x, training=False).float()


def base_of(net, size):
    "The network below its classifier as Keras models: (all of it, the wrapped part below the last stage, the wrapped last stage)."
    *body, _ = net.children()
    shape = lambda *parts: (None, *nn.Sequential(*parts).eval()(torch.zeros(1, 3, size, size)).shape[1:])
    below = Still(nn.Sequential(*body[:7]), name='below', output_shape=shape(*body[:7]))
    last = Still(body[7], name='layer4', output_shape=shape(*body[:8]))
    inputs = keras.Input((size, size, 3))
    x = layers.Normalization(axis=-1, mean=np.array(MEAN) * 255, variance=(np.array(STD) * 255)**2)(inputs)
    x = last(below(layers.Permute((3, 1, 2))(x)))
    return keras.Model(inputs, layers.GlobalAveragePooling2D(data_format='channels_first')(x), name='base'), below, last


def top(base, size):
    "The base in inference mode, dropout and one logit."
    inputs = keras.Input((size, size, 3))
    return keras.Model(inputs, layers.Dense(1)(layers.Dropout(.2)(base(inputs, training=False))))


def compile_and_fit(model, lr, epochs, train, valid, batch=64):
    model.compile(keras.optimizers.Adam(lr), keras.losses.BinaryCrossentropy(from_logits=True), metrics=[keras.metrics.BinaryAccuracy()])
    if epochs: model.fit(*train, batch_size=batch, epochs=epochs, validation_data=valid, verbose=0)


def freeze(layer, frozen):
    "Freeze or thaw a wrapped network for Keras and for torch alike, so that no gradient is computed in vain."
    layer.trainable = not frozen
    layer.module.requires_grad_(not frozen)


def train(setup):
    keras.utils.set_random_seed(setup.seed)
    base, below, last = base_of(network(setup), setup.size)
    (x, y), valid = split(setup, 'train'), split(setup, 'valid')
    for part in below, last: freeze(part, True)
    if 'bf16' in setup.variant:
        for part in below, last: part.bf16 = True; part.module.to(memory_format=torch.channels_last)
    if 'once' in setup.variant: model = train_once(base, (x, y), valid, setup)
    else:
        data, model = (augment(x), y), top(base, setup.size)
        head = setup.epochs if setup.job == 'features' else setup.head_epochs
        compile_and_fit(model, 1e-3, head, data, valid)
        if setup.job != 'features':
            for part in ([below, last] if setup.job == 'full' else [last]): freeze(part, False)
            compile_and_fit(model, 1e-5, setup.epochs - head, data, valid)
    def scores(pictures):
        logit = model.predict(np.asarray(pictures, np.float32), batch_size=100, verbose=0)
        return np.concatenate([-logit, logit], 1)
    return Trained(scores, lambda files: scores(load(files, setup.size, setup.threads)), 'Adam, 64 a step, pictures decoded and augmented once, kept in memory'
                   + (', bfloat16, channels_last' if 'bf16' in setup.variant else '')
                   if 'once' not in setup.variant else 'base run once, Adam on what it gave')


def train_once(base, train, valid, setup):
    "Compute the base once for each picture and train dropout and logit on the result."
    (x, y), (xv, yv) = train, valid
    f, fv = (base.predict(p, batch_size=64, verbose=0) for p in (x, xv))
    small = keras.Sequential([keras.Input(f.shape[1:]), layers.Dropout(.2), layers.Dense(1)])
    compile_and_fit(small, 1e-3, setup.epochs, (f, y), (fv, yv))
    inputs = keras.Input((setup.size, setup.size, 3))
    return keras.Model(inputs, small(base(inputs, training=False)))


if __name__ == '__main__': main(train)
