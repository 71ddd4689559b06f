"""Run as a file in a fresh process: ``mteb run`` on exported folders, without any code of ours.

mteb's command line takes names of the hub or of its own registry and no folders, so each folder is entered in the registry, as published
models are, with sentence-transformers as its loader and nothing else said, but for leave to run the code that some bring. Arguments: pairs
NAME=FOLDER; results go to the folder ``results``.
"""

import sys
from functools import partial
from pathlib import Path

from mteb.cli.build_cli import main
from mteb.models.get_model_meta import MODEL_REGISTRY
from mteb.models.model_meta import ModelMeta
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper


def load(folder, name, revision=None, **options):
    options.pop("embed_dim", None)
    if (Path(folder) / "both_ways.py").is_file():
        options["trust_remote_code"] = True
    return SentenceTransformerEncoderWrapper(folder, **options)


for pair in sys.argv[1:]:
    name, _, folder = pair.partition("=")
    MODEL_REGISTRY[name] = ModelMeta.create_empty({"name": name, "revision": "1", "loader": partial(load, folder), "framework": ["Sentence Transformers"]})
    sys.argv = ["mteb", "run", "-m", name, "-t", "STSBenchmark", "--eval-splits", "test", "--output-folder", "results", "--no-co2-tracker"]
    main()
