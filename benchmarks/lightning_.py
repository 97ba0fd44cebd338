"""Lightning with its `BackboneFinetuning` callback, as in the callback's documentation: Adam at 1e-3 on the head, the backbone
joins after `head_epochs` at a tenth of that and catches up. Pictures as in Lightning's transfer-learning example: resized, mirrored."""
import logging
import tempfile
import warnings

import torch
import torch.nn.functional as F
from common import MEAN, STD, Trained, from_files, main, network, plain
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder


class Transfer(LightningModule):
    "What never trains (`below`), what the callback thaws (`backbone`), and a head."
    def __init__(self, net, job):
        super().__init__()
        *body, head = net.children()
        cut = 7 if job == 'last' else 0          # conv1, bn1, relu, maxpool, layer1, layer2, layer3 | layer4, avgpool
        self.below, self.backbone = nn.Sequential(*body[:cut]).requires_grad_(False).eval(), nn.Sequential(*body[cut:])
        self.head = nn.Sequential(nn.Flatten(), head)

    def forward(self, x): return self.head(self.backbone(self.below(x)))
    def training_step(self, batch, i): return F.cross_entropy(self(batch[0]), batch[1])
    def validation_step(self, batch, i): self.log('accuracy', (self(batch[0]).argmax(1) == batch[1]).float().mean())
    def configure_optimizers(self): return torch.optim.Adam(self.head.parameters(), lr=1e-3)


def transforms(size):
    "Training and validation pictures of `size` × `size` pixels."
    first, last = T.Resize((size, size)), [T.ToTensor(), T.Normalize(MEAN, STD)]
    return T.Compose([first, T.RandomHorizontalFlip(), *last]), T.Compose([first, *last])


def train(setup):
    seed_everything(setup.seed, verbose=False)
    moving, still = transforms(setup.size)
    loaders = [DataLoader(ImageFolder(setup.data/'pictures'/part, t), 32, shuffle=part == 'train', num_workers=setup.workers, persistent_workers=True)
               for part, t in (('train', moving), ('valid', still))]
    model = Transfer(network(setup), setup.job)
    thaw = setup.epochs + 1 if setup.job == 'features' else setup.head_epochs
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(max_epochs=setup.epochs, accelerator='cpu', callbacks=[BackboneFinetuning(thaw)], logger=False, num_sanity_val_steps=0,
                          enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder)
        trainer.fit(model, *loaders)
    return Trained(plain(model), from_files(model, still), f'Adam, 32 a step, {setup.workers} workers, backbone from epoch {thaw + 1}')


if __name__ == '__main__':
    logging.getLogger('lightning.pytorch').setLevel(logging.ERROR); warnings.simplefilter('ignore')
    main(train)
