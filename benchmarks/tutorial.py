"""The loop of the PyTorch tutorial "Transfer Learning for Computer Vision", in our own words.

SGD with momentum, the rate cut to a tenth every 7 epochs, random crops and mirror images, pictures decoded anew in every epoch by
worker processes, the weights of the best validation epoch kept. Variants: `bf16` (autocast and channels_last, switched on by hand),
`b32` (32 pictures a step instead of the tutorial's 4, and 8 times its rate)."""
import copy
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from common import MEAN, STD, Trained, from_files, main, network, plain
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder


def transforms(size):
    "The tutorial's 224 pixels out of 256, brought to `size`."
    last = [T.ToTensor(), T.Normalize(MEAN, STD)]
    return (T.Compose([T.RandomResizedCrop(size), T.RandomHorizontalFlip(), *last]),
            T.Compose([T.Resize(round(size * 256 / 224)), T.CenterCrop(size), *last]))


def freeze(net, job):
    "No gradients where the job trains nothing. As in the tutorial, BatchNorm statistics move all the same."
    kept = dict(features=('fc.',), last=('fc.', 'layer4.'), full=('',))[job]
    for name, p in net.named_parameters(): p.requires_grad = name.startswith(kept)


def epoch(net, loader, opt, context, layout):
    "One pass over `loader`; trains where there is an optimizer. Returns the share of right answers."
    net.train(opt is not None); hits = n = 0
    for x, y in loader:
        with torch.set_grad_enabled(opt is not None):
            with context(): logits = net(x.contiguous(memory_format=layout))
            loss = F.cross_entropy(logits.float(), y)
        if opt: opt.zero_grad(); loss.backward(); opt.step()
        hits, n = hits + (logits.argmax(1) == y).sum().item(), n + len(y)
    return hits / n


def train(setup):
    hand, batch = 'bf16' in setup.variant, 32 if 'b32' in setup.variant else 4
    context = (lambda: torch.autocast('cpu', torch.bfloat16)) if hand else nullcontext
    layout = torch.channels_last if hand else torch.contiguous_format
    moving, still = transforms(setup.size)
    loader = {part: DataLoader(ImageFolder(setup.data/'pictures'/part, t), batch, shuffle=part == 'train', num_workers=setup.workers)
              for part, t in (('train', moving), ('valid', still))}
    net = network(setup).to(memory_format=layout); freeze(net, setup.job)
    opt = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1e-3 * batch / 4, momentum=.9)
    sched = torch.optim.lr_scheduler.StepLR(opt, step_size=7, gamma=.1)
    best, weights = -1., None
    for _ in range(setup.epochs):
        epoch(net, loader['train'], opt, context, layout); sched.step()
        if (valid := epoch(net, loader['valid'], None, context, layout)) > best: best, weights = valid, copy.deepcopy(net.state_dict())
    net.load_state_dict(weights)
    return Trained(plain(net), from_files(net, still), f'SGD, {batch} a step, {setup.workers} workers' + (', bf16 and channels_last' if hand else ''))


if __name__ == '__main__': main(train)
