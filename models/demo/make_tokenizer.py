"""python -m models.demo tokenizer: writes `models/demo/checkpoint/tokenizer.json`, or another
policy's.

A byte-level BPE of some hundred entries with the pre-tokenizer and the special-token roles of
Qwen2.5, trained on the prompt and on instructions like those of the demo's tasks. Deterministic.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from models.anchorvla4d.config import PromptConfig
from models.demo.config import TokenizerConfig
from models.eventvla.presets import blink
from runtime.robots.metaworld import TASKS
from runtime.storage.files import Kind, write_file

VOCABULARY = 480
TOKENIZER = Kind("a tokenizer", (b'"vocab"', b"<|image_pad|>"))
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
)
WORDS = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VERBS = ("reach", "push", "pull", "press", "open", "close", "pick up", "place", "move", "turn")
OBJECTS = (
    "marker", "puck", "button", "drawer", "window", "door", "block", "handle", "lever", "carrot",
    "spoon", "plate", "eggplant", "cube",
)  # fmt: skip
PLACES = ("where the marker was", "on the plate", "to the goal", "to the left", "from the top")
COLOURS = ("red", "green", "blue", "yellow")

TEXTS = {
    "demo": (PromptConfig().template, ()),
    "blink": (
        f"{blink().prompt.before}{TASKS['touch-what-blinked'].instruction}.",
        (blink().action_token, blink().asked),
    ),
}
"""Of each policy: text that its prompts consist of, and further special tokens. A sentence that is
always the same is one token, as it tells nothing."""


def make(config: TokenizerConfig) -> None:
    """Do what `TokenizerConfig` says."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(WORDS, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    text, more = TEXTS[config.policy]
    tokenizer.train_from_iterator(_corpus(text), trainer)
    tokenizer.add_special_tokens([*SPECIAL, *more])
    write_file(config.out, tokenizer.to_str(pretty=True), TOKENIZER)
    print(f"{config.out}: {tokenizer.get_vocab_size()} tokens")


def _corpus(plain: str) -> list[str]:
    for special in SPECIAL:
        plain = plain.replace(special, "")
    for place in ("{anchor}", "{frame}", "{instruction}"):
        plain = plain.replace(place, "")
    instructions = [
        f"{verb} the {colour} {thing} {place}"
        for verb in VERBS
        for colour in COLOURS
        for thing in OBJECTS
        for place in PLACES
    ]
    return [plain] * 200 + instructions
