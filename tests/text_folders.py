"Small text networks with random weights, each with a tokenizer of its family, saved as transformers does; used by the tests of texts."
import warnings

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

FAMILIES = 'bert', 'distilbert', 'roberta', 'gpt2'
CORPUS = ['the film was good and the music was better', 'the zipper broke after two days', 'not bad, not good, it is what it is',
          'I would buy it again', 'never again: it smells, it squeaks and it is late']
TEXTS = ['good', 'the music was not bad', 'it', 'never again: the zipper broke after two days and it smells', 'I would buy it']


def word_pieces():
    "WordPiece between [CLS] and [SEP], as BERT has it: some words, and all letters for the others."
    letters = [chr(c) for c in range(97, 123)]
    vocabulary = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', ':', ',', *letters, *(f'##{c}' for c in letters),
                  *sorted({w.strip(',:') for text in CORPUS for w in text.lower().split()} - set(letters))]
    tok = Tokenizer(models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token='[UNK]'))
    tok.normalizer, tok.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tok.post_processor = processors.TemplateProcessing(single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 2), ('[SEP]', 3)])
    return tok, dict(pad_token='[PAD]', unk_token='[UNK]', cls_token='[CLS]', sep_token='[SEP]', mask_token='[MASK]')


def byte_pairs(specials, single=None):
    "Pairs of bytes, as GPT-2 has it, with a few merges."
    merges = [('t', 'h'), ('th', 'e'), ('Ġ', 'the'), ('i', 't'), ('Ġ', 'a'), ('Ġa', 'n'), ('o', 'o'), ('g', 'oo'), ('goo', 'd')]
    vocabulary = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    tok = Tokenizer(models.BPE({w: i for i, w in enumerate(vocabulary)}, merges))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tok.add_special_tokens(specials)
    if single: tok.post_processor = processors.TemplateProcessing(single=single, special_tokens=[(t, tok.token_to_id(t)) for t in ('<s>', '</s>')])
    return tok


def tokenizer_of(family):
    if family in ('bert', 'distilbert'): return word_pieces()
    if family == 'gpt2': return byte_pairs(['<|endoftext|>']), dict(eos_token='<|endoftext|>', bos_token='<|endoftext|>')
    return byte_pairs(['<s>', '<pad>', '</s>', '<unk>', '<mask>'], '<s> $A </s>'), dict(pad_token='<pad>', bos_token='<s>', eos_token='</s>',
                                                                                   cls_token='<s>', sep_token='</s>', unk_token='<unk>', mask_token='<mask>')


def config_of(family, vocabulary, **more):
    from transformers import BertConfig, DistilBertConfig, GPT2Config, RobertaConfig
    bert = dict(vocab_size=vocabulary, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
    if family == 'bert': return BertConfig(**bert | dict(max_position_embeddings=64) | more)
    if family == 'roberta':
        return RobertaConfig(**bert | dict(max_position_embeddings=66, pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1) | more)
    if family == 'gpt2': return GPT2Config(**dict(vocab_size=vocabulary, n_embd=16, n_layer=3, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0) | more)
    return DistilBertConfig(**dict(vocab_size=vocabulary, dim=16, n_layers=3, n_heads=2, hidden_dim=32, max_position_embeddings=64) | more)


def save_folder(family, folder, seed=0, spread=.3, **more):
    "Save a small network and its tokenizer in `folder`. Wide random weights make every fault visible."
    from transformers import AutoModel, PreTrainedTokenizerFast
    from transformers.utils import logging
    logging.disable_progress_bar()
    tok, names = tokenizer_of(family)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.manual_seed(seed)
        net = AutoModel.from_config(config_of(family, tok.get_vocab_size(), **more))
        with torch.no_grad():
            for p in net.parameters(): p.add_(spread * torch.randn_like(p))
        net.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tok, **names).save_pretrained(folder)
    return folder
