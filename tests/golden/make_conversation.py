"""Makes conversation.npz: what VideoLLaMA3's own trainer makes of conversations (tokens, labels), and the losses of transformers' model on such.

    python -m tests.golden.make_conversation --original DIR     # from the repository's root; needs torch, transformers, jinja2

DIR is a clone of github.com/DAMO-NLP-SG/VideoLLaMA3. Its data reader and its processor are run as they are; what they would load from files is given to
them. A stream's frames get their times under the key that its chat template asks for ("time"; the reader says "timestamps", which the template ignores).
"""

from __future__ import annotations

import argparse
import ast
import copy
import pathlib
import sys
import types
import warnings
from typing import Any

import numpy as np

from tests.golden import make_chat

PATH = pathlib.Path(__file__).with_name("conversation.npz")
OWN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<|stream_start|>", "<|stream_end|>"]  # control tokens of the original's vocabulary
BOX = "The ring is at [0.12, 0.34, 0.56, 0.78]."
SIZES = {"a.png": (24, 20), "b.png": (16, 32)}  # height, width: multiples of the patch, so that nothing is resized
FILM = {"film.mp4": (32, 32)}
SECONDS = 4  # of the film, at one frame a second


def turns(*said: str) -> list[dict]:
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(said)]


CASES: dict[str, dict] = {
    "image": {"image": ["a.png"], "conversations": turns("<image>\nWhat is it? ", "A cat.", " And where? ", "On  a mat.\n")},
    "images": {"image": ["a.png", "b.png"], "conversations": turns("First <image>\n and then <image>: what changed?\n", "Die Größe.\n\n  - viel")},
    "untagged": {"image": "b.png", "conversations": [{"from": "gpt", "value": "Hello."}, *turns("Where is the ring?", BOX)]},
    "text": {"conversations": turns("  What is 2 + 2?\n", "4", "And 3?", "")},
    "video": {"video": ["film.mp4"], "conversations": turns("<video>\nWhen?", "At 3 s.")},
    "stream": {
        "stream": True, "video": ["film.mp4"], "start_time": 1, "end_time": 4,
        "conversation": [
            {"role": "user", "content": "Tell me when it moves.", "time": 1.0}, {"role": "assistant", "content": "It does.", "time": 2.5},
            {"role": "assistant", "content": "Still.", "time": 2.9},
        ],
    },
}  # fmt: skip
ANSWERS = {"text": "A red ring.", "image": "the same as before", "images": "Nothing happens here", "video": "At 2 s."}  # to the prompts of make_chat
GRADIENTS = (
    "model.vision_model.encoder.layers.0.self_attn.q_proj.weight", "model.projector.readout.0.weight", "model.projector.readout.2.bias",
    "model.language_model.layers.0.self_attn.k_proj.weight", "model.language_model.embed_tokens.weight",
)  # fmt: skip
MERGES = {"image": 1, "images": 1, "untagged": 1, "text": 1, "video": 2, "stream": 2}


def picture(name: str) -> np.ndarray:
    """uint8 [h w 3]"""
    height, width = SIZES[name]
    return np.random.default_rng(list(name.encode())).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tokenizer(special: list[str] = OWN):
    """`make_chat.tokenizer` with other control tokens."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True), decoders.ByteLevel()
    inner.add_special_tokens(special)
    return inner


def answered(case: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A prompt of make_chat with an answer behind it: (ids, which of them are learnt)."""
    words = make_chat.tokenizer()
    prompt, answer = words.encode(make_chat.text(case, seed)).ids, words.encode(f"{ANSWERS[case]}<|im_end|>").ids
    ids = np.array([*prompt, *answer, *words.encode("\n").ids], np.int32)
    return ids, (np.arange(len(ids)) >= len(prompt)) & (np.arange(len(ids)) < len(ids) - 1)


def reference(seed: int = 0) -> dict[str, np.ndarray]:
    """Of transformers' model: each case's loss, and some gradients of the mean over all cases' learnt tokens."""
    import torch

    model, total, arrays = make_chat.model(seed), 0, {}
    model.zero_grad()
    for case in make_chat.CASES:
        ids, learnt = answered(case, seed)
        inputs = make_chat.inputs(case, seed) | {"input_ids": torch.tensor(ids[None]).long(), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        loss = model(**inputs, labels=torch.tensor(np.where(learnt, ids, -100)[None]).long()).loss
        (loss * learnt.sum()).backward()
        total += learnt.sum()
        arrays[f"loss/{case}"] = loss.detach().numpy()
    parameters = dict(model.named_parameters())
    return arrays | {f"gradient/{name}": (parameters[name].grad / total).numpy() for name in GRADIENTS}


def load() -> dict[str, np.ndarray]:
    """The committed arrays."""
    with np.load(PATH) as file:
        return {name: file[name] for name in file.files}


# -------------------------------------------------------------------------------------------------------------------- the original


def _original(folder: pathlib.Path) -> dict[str, np.ndarray]:
    import torch
    from transformers import PreTrainedTokenizerFast

    constants = _module("videollama3.constants", folder / "videollama3" / "constants.py")
    sys.modules["videollama3.mm_utils"] = types.SimpleNamespace(load_video=None, load_images=None)
    import transformers.image_utils
    from transformers.video_utils import VideoInput

    transformers.image_utils.VideoInput = VideoInput  # where older versions had it
    processor_class = _module("videollama3.processor", folder / "videollama3" / "model" / "processor.py").Videollama3Processor
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer(), eos_token="<|im_end|>", pad_token="<|endoftext|>")
    processor = processor_class(types.SimpleNamespace(), words)
    arguments = types.SimpleNamespace(data_folder="", fps=1, max_frames=180, image_merge_size=1, video_merge_size=2)
    reader = types.SimpleNamespace(data_args=arguments)
    convert = _reader(folder / "videollama3" / "train.py", constants)
    arrays = {}
    for name, case in CASES.items():
        with warnings.catch_warnings(action="ignore"):
            modal, images, messages, merge = convert["_convert_stream" if case.get("stream") else "_convert_normal"](reader, copy.deepcopy(case))
        for message in messages:
            for content in message["content"] if message["role"] == "stream" else ():
                content["time"] = content.pop("timestamps")
        merge = MERGES[name]
        pictures = [frame for shown in images or () for frame in (shown if isinstance(shown, list) else [shown])]
        grids = [torch.tensor([frame.shape[0] // make_chat.PATCH, frame.shape[1] // make_chat.PATCH]) // merge for frame in pictures]
        found = processor._process_text_with_label(messages, grids)
        arrays |= {f"{name}/ids": found["input_ids"].numpy().astype(np.int16), f"{name}/labels": found["labels"].numpy().astype(np.int16)}
        assert modal == {"untagged": "image", "images": "image", "stream": "video"}.get(name, name)
    return arrays


def _module(name: str, file: pathlib.Path) -> Any:
    """A module of the original under its own name, without the package around it."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _reader(file: pathlib.Path, constants: Any) -> dict[str, Any]:
    """The data reader's two methods, with files given to them."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    dataset = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "LazySupervisedDataset")
    methods = [node for node in dataset.body if isinstance(node, ast.FunctionDef) and node.name.startswith("_convert")]

    def load_video(video_path: str, start_time: float = 0.0, end_time: float = SECONDS, **_: Any):
        times = np.arange(start_time, end_time, 1.0).tolist()  # the template of today's transformers wants no arrays
        return [np.zeros((*FILM[video_path], 3), np.uint8) for _ in times], times

    def load_images(paths: Any) -> list[np.ndarray]:
        return [picture(path) for path in ([paths] if isinstance(paths, str) else paths)]

    space = {**vars(constants), "copy": copy, "warnings": warnings, "load_video": load_video, "load_images": load_images}
    space["os"] = types.SimpleNamespace(path=types.SimpleNamespace(join=lambda folder, name: name))
    exec(compile(ast.Module(methods, []), str(file), "exec"), space)
    return space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--original", metavar="DIR", type=pathlib.Path)
    folder = parser.parse_args().original
    arrays = {name: array for name, array in load().items() if name.endswith(("/ids", "/labels"))} if folder is None else _original(folder)
    np.savez_compressed(PATH, **arrays, **reference())
    print(f"{PATH.name}: {PATH.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
