"""A `policy.base` that cannot be used: one sentence with the setting, the file and what to do, before any training."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.models import make_tiny_policy
from trainers.policy.base import check_base, load_policy
from trainers.policy.base_folder import BaseFault, check_folder, read_header

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 269060552\n"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_policy(tmp_path_factory.mktemp("base") / "good")


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def without(*names: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return spoil


def written(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def cut(size: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        with (folder / "model.safetensors").open("rb+") as file:
            file.truncate(size)

    return spoil


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def in_parts(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))


def adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def linked_to_nothing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "blobs" / "gone")


def as_folder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


def with_header(header: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        text = json.dumps(header).encode() if not isinstance(header, bytes) else header
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)

    return spoil


def with_index(weight_map: object, cut: int = 0) -> Callable[[Path], None]:
    """The weights as one part with another name, which `weight_map` says holds which tensors."""

    def spoil(folder: Path) -> None:
        part = (folder / "model.safetensors").rename(folder / "part.safetensors")
        with part.open("rb+") as file:
            file.truncate(part.stat().st_size - cut)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return spoil


FILES = [
    (empty, ("the folder is empty", "config.json")),
    (without("config.json"), ("config.json is missing",)),
    (written("config.json", "{"), ("config.json cannot be read",)),
    (written("config.json", "{}"), ("config.json", "model_type")),
    (written("config.json", LFS), ("config.json", "git lfs pull")),
    (without("tokenizer.json"), ("tokenizer.json",)),
    (written("tokenizer.json", LFS), ("tokenizer.json", "git lfs pull")),
    (written("tokenizer.json", "[]"), ("tokenizer.json",)),
    (without("model.safetensors"), ("model.safetensors is missing",)),
    (written("model.safetensors", LFS), ("model.safetensors", "git lfs pull")),
    (cut(0), ("model.safetensors", "cut or damaged", "download it again")),
    (cut(100), ("model.safetensors", "cut or damaged", "download it again")),
    (cut(20_000), ("model.safetensors", "is cut", "Download it again")),
    (pickled, ("pytorch_model.bin", "safetensors")),
    (in_parts, ("model-00001-of-00002.safetensors is missing",)),
    (adapter, ("adapter_config.json", "LoRA adapter")),
    (written("adapter_config.json", '{"base_model_name_or_path": "x/y"}'), ("adapter_config.json", "LoRA adapter")),
    (linked_to_nothing, ("model.safetensors cannot be read", "Download it again")),
    (as_folder, ("model.safetensors cannot be read", "Download it again")),
    (with_header({"w": 1}), ("model.safetensors is cut or damaged", "where the tensor lies")),
    (with_header({"w": {"data_offsets": None}}), ("model.safetensors is cut or damaged", "where the tensor lies")),
    (with_header({"w": {"data_offsets": ["0", "4"]}}), ("model.safetensors is cut or damaged", "where the tensor lies")),
    (with_header(b"[" * 50_000), ("model.safetensors is cut or damaged",)),
    (with_index([]), ("index.json names no file",)),
    (with_index({"w": 1}), ("index.json names no file",)),
    (with_index({"lm_head.weight": "part.safetensors"}, cut=7), ("part.safetensors is cut",)),
    (with_index({"absent": "part.safetensors"}), ("part.safetensors lacks the tensor absent", "index.json")),
    (with_index({"w": "sub/part.safetensors"}), ("sub/part.safetensors is missing",)),
]


@pytest.mark.parametrize(("spoil", "said"), FILES)
def test_a_spoiled_folder_is_refused_by_its_file(
    good: Path, tmp_path: Path, spoil: Callable[[Path], None], said: tuple[str, ...]
) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "base"))
    spoil(folder)
    with pytest.raises(BaseFault) as caught:
        check_folder(folder)
    assert not [one for one in (f"policy.base = '{folder}'", *said) if one not in str(caught.value)], str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("base", ["/none/there", "./none", "~/none", "a/b/c"])
def test_a_path_without_a_folder_is_not_asked_of_the_hub(base: str) -> None:
    with pytest.raises(BaseFault, match="the folder does not exist"):
        check_folder(base)


@pytest.mark.parametrize("base", ["", " ", "~nobody-of-that-name/model", "x" * 5000])
def test_what_can_be_no_path_is_said_in_one_sentence(base: str) -> None:
    with pytest.raises(BaseFault, match=r"^policy\.base = '.*' *: is (empty|no path)|the folder does not exist"):
        check_folder(base)


def test_parts_may_lie_in_a_folder_below_and_be_links(good: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "base"))
    (folder / "parts").mkdir()
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "parts" / "one.safetensors").symlink_to(tmp_path / "blob")
    header, _ = read_header(tmp_path / "blob")
    places = {name: "parts/one.safetensors" for name in header if name != "__metadata__"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    check_folder(folder)


def test_a_good_folder_and_a_hubs_id_pass(good: Path) -> None:
    check_folder(good)
    check_folder("Qwen/Qwen3-0.6B")
    tokenizer, new = check_base(good)
    assert (tokenizer.eos_token, new) == ("<EOS>", [])


def changed_config(folder: Path, **values: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"], "layer_types": None}, "model_type"),
        ({"model_type": "hopfield"}, "config.json"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "sliding_attention"),
    ],
)
def test_an_architecture_that_cannot_be_served_is_refused_before_training(
    good: Path, tmp_path: Path, values: dict[str, object], said: str
) -> None:
    folder = changed_config(Path(shutil.copytree(good, tmp_path / "base")), **values)
    with pytest.raises(BaseFault) as caught:
        check_base(folder)
    assert "policy.base" in str(caught.value)
    assert said in str(caught.value)


def test_weights_of_another_shape_are_named_and_not_filled_in(good: Path, tmp_path: Path) -> None:
    folder = changed_config(Path(shutil.copytree(good, tmp_path / "base")), intermediate_size=48)
    with pytest.raises(BaseFault, match=r"the tensor \S+mlp\S+ is .* in model.safetensors, .* by config.json"):
        load_policy(folder, "cpu")


def test_missing_weights_are_named_and_not_filled_in(good: Path, tmp_path: Path) -> None:
    folder = changed_config(Path(shutil.copytree(good, tmp_path / "base")), num_hidden_layers=3)
    with pytest.raises(BaseFault, match=r"its weights lack \d+ tensors, such as model.layers.2"):
        load_policy(folder, "cpu")


def test_a_hub_without_a_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BaseFault, match=r"policy.base = 'nobody/nothing': is no folder here, and the hub gives no config.json"):
        check_base("nobody/nothing")
