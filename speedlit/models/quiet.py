"""Keeps the libraries' own bars and notices off the screen; what a user needs to know, we say in our words."""

from __future__ import annotations

import logging
import warnings
from functools import cache

REDISTRIBUTE = "torch.distributed.tensor._redistribute"  # warns of each exchange over two kinds of groups, which is what norms and whole weights take


@cache
def quiet() -> None:
    """Silence load reports and bars of transformers, notices of bitsandbytes, of exchanges and of deprecated names inside peft. Once."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").addFilter(lambda record: "kernels" not in record.getMessage())
    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.backends.utils", "bitsandbytes.cextension", REDISTRIBUTE):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
    warnings.filterwarnings("ignore", message=".*MatMul8bitLt.*")
