"""Import a signal of tokens from JSON lines, as other tools capture it, or export it to them.

Not a stage: `dvc commit --force signal-NAME` makes what was imported that stage's result.
"""

from pathlib import Path

from firstkd.data.examples import example_key, read_all
from firstkd.data.prompts import encode
from firstkd.errors import ConfigError
from firstkd.files import write_json
from firstkd.models.folders import load_model, load_tokenizer, vocabulary_size
from firstkd.models.tokenizers import vocabulary_digest
from firstkd.settings import load_settings
from firstkd.signals.interchange import export_lines, import_lines
from firstkd.signals.store import SignalStore
from firstkd.signals.tokens import Tokens
from tasks.layout import model_folder, signal_folder
from tasks.signal import files_of, identity_of


def export_split(root: Path, name: str, split: str, path: Path) -> SignalStore:
    """Write a split of a signal to `path`; return its store."""
    store = SignalStore(signal_folder(root, name, split))
    export_lines(store, path)
    return store


def import_split(root: Path, name: str, split: str, path: Path) -> SignalStore:
    """Replace a split of a signal of tokens with the lines of `path`; return the new store.

    Raises ConfigError for another kind of signal, ArtifactError for lines that do not fit.
    """
    settings = load_settings(root / "params.yaml")
    signal = settings.signals.get(name)
    if not isinstance(signal, Tokens):
        known = [key for key, each in settings.signals.items() if isinstance(each, Tokens)]
        raise ConfigError(f"{name!r} is not a signal of tokens; allowed: {', '.join(known)}")
    model = model_folder(root, signal.of)
    tokenizer = load_tokenizer(model)
    examples = read_all(files_of(root, settings)[split])
    folder = signal_folder(root, name, split)
    import_lines(
        path,
        encode(examples, tokenizer, settings.prompt),
        [example_key(example) for example in examples],
        signal,
        vocabulary_size(load_model(model)),
        settings.capture.shard_examples,
        folder,
        {**identity_of(root, settings, name), "vocabulary": vocabulary_digest(tokenizer)},
    )
    made = {each: signal_folder(root, name, each) for each in files_of(root, settings)}
    described = {s: signal.describe(SignalStore(path)) for s, path in made.items() if path.exists()}
    write_json(signal_folder(root, name) / "metrics.json", described)  # for the report
    return SignalStore(folder)
