"""Text encoders of transformers, of a few thousand parameters, with tokenizers of a few words."""

from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["a", "red", "blue", "circle", "square", "on", "the", "left", "of", "big", "small"]
PAD, START, END, UNKNOWN = range(4)
_VOCABULARY = {"<pad>": PAD, "<s>": START, "</s>": END, "<unk>": UNKNOWN}
_VOCABULARY |= {word: i for i, word in enumerate(WORDS, len(_VOCABULARY))}
_SIZE = {"vocab_size": len(_VOCABULARY), "hidden_size": 16, "intermediate_size": 32}
_SIZE |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 24}
_ENDS = {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}


def write_encoder(folder: Path, name: str) -> Path:
    """Saves an encoder and its tokenizer in ``folder / name``, with seeded weights."""
    torch.manual_seed(3)
    network = _NETWORKS[name]()
    for parameter in network.parameters():  # initial weights are too small to tell words apart
        torch.nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(folder / name)
    _tokenizer(starts=name not in ("t5", "t5-encoder")).save_pretrained(folder / name)
    return folder / name


def write_clip(folder: Path) -> Path:
    """Saves a whole CLIP, which looks at 8 x 8 px, in ``folder / "clip"``, with seeded weights."""
    path, size = write_encoder(folder, "clip"), {"height": 8, "width": 8}
    hf.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=size).save_pretrained(path)
    return path


def _tokenizer(starts: bool) -> hf.PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(_VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    template = "<s> $A </s>" if starts else "$A </s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", START), ("</s>", END)]
    )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=20, **names)


def _t5_config() -> hf.T5Config:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return hf.T5Config(vocab_size=len(_VOCABULARY), decoder_start_token_id=PAD, **sizes, **_ENDS)


def _clip() -> hf.CLIPModel:
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    text = hf.CLIPTextConfig(**_SIZE, **_ENDS).to_dict()
    vision = hf.CLIPVisionConfig(**vision).to_dict()
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))


_DISTIL = {"vocab_size": len(_VOCABULARY), "dim": 16, "hidden_dim": 32, "n_layers": 2}
_NETWORKS = {
    "clip": _clip,
    "clip-text": lambda: hf.CLIPTextModel(hf.CLIPTextConfig(**_SIZE, **_ENDS)),
    "t5": lambda: hf.T5ForConditionalGeneration(_t5_config()),
    "t5-encoder": lambda: hf.T5EncoderModel(_t5_config()),
    "bert": lambda: hf.BertModel(hf.BertConfig(**_SIZE), add_pooling_layer=False),
    "bert-pooler": lambda: hf.BertModel(hf.BertConfig(**_SIZE)),
    "roberta": lambda: hf.RobertaModel(hf.RobertaConfig(**_SIZE, **_ENDS)),
    "distilbert": lambda: hf.DistilBertModel(
        hf.DistilBertConfig(**_DISTIL, n_heads=2, max_position_embeddings=24, pad_token_id=PAD)
    ),
}
NAMES = tuple(_NETWORKS)
