"""Small tokenizers of the kinds that model families bring."""

from collections.abc import Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

CONTROL = ["<pad>", "<s>", "</s>"]
TEXT = [
    "Question: Where does the fox live?\nAnswer: in a den",
    "Question: Where does the bee live?\nAnswer: in a hive",
    "Answer: A, or Answer: B, of A. B. C. D. the sea, the nest, the desert.",
    "He wrote it in HTML 12 times.",
] * 20


def _trained(
    tokenizer: Tokenizer, alphabet: Sequence[str] = (), **special: str
) -> PreTrainedTokenizerFast:
    trainer = BpeTrainer(
        vocab_size=400, special_tokens=CONTROL, show_progress=False, initial_alphabet=list(alphabet)
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_level() -> Any:
    return _trained(_byte_level(), pre_tokenizers.ByteLevel.alphabet())


def pad_is_eos() -> Any:
    return _trained(_byte_level(), pre_tokenizers.ByteLevel.alphabet(), pad_token="</s>")


def bos_by_post_processor() -> Any:
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def bos_and_eos_by_post_processor() -> Any:
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def trimmed_offsets() -> Any:
    """As GPT-2's: the offsets of " A" leave out the space."""
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def prepending() -> Any:
    """As Llama 2's: a ▁ before every text, and for each space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return _trained(tokenizer)


def metaspace() -> Any:
    """As the generic class for SentencePiece: words begin with ▁, the text, too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    return _trained(tokenizer)


def metaspace_first() -> Any:
    """As Mistral's and newer ones of SentencePiece: only the text begins with ▁."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace()
    return _trained(tokenizer)


def merging() -> Any:
    """Words are not split first, so the prompt's last ":" merges with what follows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("\n"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _trained(tokenizer)


KINDS = (
    byte_level,
    pad_is_eos,
    bos_by_post_processor,
    bos_and_eos_by_post_processor,
    trimmed_offsets,
    prepending,
    metaspace,
    merging,
)
