"""Write a small model that quotes its context: `python -m ringattn.lm.tiny_model DIR`. No download, no training.

Its weights are set by hand, in the form of SmolLM3, so that it is a test of a long context which one can read: it continues a
text by what followed the same letters before, wherever in the context that was. Two layers make an induction head (Olsson et
al. 2022, In-context Learning and Induction Heads). The first layer's heads fetch the REACH letters before each one, by rotary
positions alone; the second layer, without rotation, compares the last REACH letters with those before every position, and
copies the letter there. If a rank lost a key, or a position were wrong, the quotation would break.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ringattn._errors import ArgumentError
from ringattn.lm._command import USAGE, need_mlx_lm, refused

REACH = 8  # letters that must agree; also the number of heads
CODE = 12  # dimensions of a letter's code, of +1 and -1
BYTES = 256
VOCABULARY = BYTES + 1  # the end of text comes last
DIM = REACH * CODE  # of a head; also the frequencies by which positions are told apart, twice
HIDDEN = (REACH + 2) * CODE  # a letter, those before it, and the one to come
GAIN = 60.0  # of a score per agreeing letter over one that does not; large, so that the softmax takes one position
THETA = 10000.0
CONFIG = {
    "model_type": "smollm3",
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "intermediate_size": CODE,
    "num_attention_heads": REACH,
    "num_key_value_heads": 1,
    "head_dim": DIM,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
    "rope_theta": THETA,
    "no_rope_layers": [1, 0],
    "attention_bias": True,
    "tie_word_embeddings": False,
    "max_position_embeddings": 1 << 20,
    "eos_token_id": BYTES,
    "bos_token_id": BYTES,
    "pad_token_id": BYTES,
}


def letter_codes() -> np.ndarray:
    """Return a code of +1 and -1 for each token, [VOCABULARY, CODE]; any two differ in two places at least."""
    numbers = np.arange(1 << CODE)
    bits = (numbers[:, None] >> np.arange(CODE)) & 1
    even = bits[bits.sum(axis=1) % 2 == 0]
    chosen = np.random.default_rng(0).choice(len(even), VOCABULARY, replace=False)
    return (2.0 * even[chosen] - 1).astype(np.float32)


def build() -> nn.Module:
    """Return the model, float32."""
    from mlx_lm.models.smollm3 import Model, ModelArgs

    model = Model(ModelArgs.from_dict(CONFIG))
    weights = {
        "model.embed_tokens.weight": np.pad(letter_codes(), ((0, 0), (0, HIDDEN - CODE))),
        "model.norm.weight": np.ones(HIDDEN),
        # The code in the last part of the hidden state, compared with each token's.
        "lm_head.weight": np.pad(letter_codes() * 4, ((0, 0), (HIDDEN - CODE, 0))),
    }
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        weights |= {
            f"{prefix}.{name}.weight": np.ones(HIDDEN) for name in ("input_layernorm", "post_attention_layernorm")
        }
        weights |= {f"{prefix}.mlp.{name}_proj.weight": np.zeros((CODE, HIDDEN)) for name in ("gate", "up")}
        weights[f"{prefix}.mlp.down_proj.weight"] = np.zeros((HIDDEN, CODE))
        weights |= {f"{prefix}.self_attn.{name}": x for name, x in (_fetch, _quote)[layer]().items()}
    model.load_weights([(name, mx.array(np.asarray(x, np.float32))) for name, x in weights.items()])
    mx.eval(model.parameters())
    return model


def _fetch() -> dict[str, np.ndarray]:
    """Return the first layer: head j reads the letter j + 1 places before, into part j + 1 of the hidden state."""
    attention = _empty()
    angles = THETA ** (-np.arange(DIM // 2) / (DIM // 2))  # radians a position
    # Queries and keys are constant; turned back by a head's distance, their product is largest there.
    for head in range(REACH):
        turned = (head + 1) * angles
        attention["q_proj.bias"][head * DIM : (head + 1) * DIM] = GAIN * np.concatenate(
            [np.cos(turned), -np.sin(turned)]
        )
        _copy(attention["o_proj.weight"], CODE * (head + 1), head * DIM, (CODE / HIDDEN) ** 0.5)  # undoes the norm
    attention["k_proj.bias"][: DIM // 2] = DIM**0.5
    _copy(attention["v_proj.weight"], 0, 0)
    return attention


def _quote() -> dict[str, np.ndarray]:
    """Return the second layer: its first head finds the same letters earlier, and copies what came after them to the last part."""
    attention = _empty()
    for place in range(REACH):  # part `place` here was part `place` + 1 one position later
        _copy(attention["q_proj.weight"], CODE * place, CODE * place, GAIN * DIM**0.5 / CODE)
        _copy(attention["k_proj.weight"], CODE * place, CODE * (place + 1))
    _copy(attention["v_proj.weight"], 0, 0)
    _copy(attention["o_proj.weight"], HIDDEN - CODE, 0)
    return attention


def _empty() -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, int]] = {"q": (REACH * DIM, HIDDEN), "k": (DIM, HIDDEN), "v": (DIM, HIDDEN)}
    weights: dict[str, np.ndarray] = {}
    for name, (rows, columns) in (shapes | {"o": (HIDDEN, REACH * DIM)}).items():
        weights |= {f"{name}_proj.weight": np.zeros((rows, columns)), f"{name}_proj.bias": np.zeros(rows)}
    return weights


def _copy(weight: np.ndarray, to: int, source: int, factor: float = 1.0) -> None:
    """Let a linear map copy a code from one place of its input to one of its output."""
    weight[to : to + CODE, source : source + CODE] = factor * np.eye(CODE)


def write(folder: Path) -> None:
    """Write model and tokenizer (bytes) as mlx-lm reads them."""
    from mlx_lm.utils import save_config, save_model
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    save_model(folder, build())
    save_config(dict(CONFIG), folder / "config.json")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Exit codes: 0 done, 2 wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m ringattn.lm.tiny_model",
        description="Write a small model that quotes its context.",
        epilog="example: python -m ringattn.lm.tiny_model models/quoting",
    )
    parser.add_argument("folder", type=Path, help="folder to write; files of these names in it are replaced")
    folder = parser.parse_args(argv).folder
    need_mlx_lm("tiny_model")
    try:
        with refused(f"{folder}: the model cannot be written", "name a folder that can be written"):
            folder.mkdir(parents=True, exist_ok=True)
            write(folder)
    except ArgumentError as error:
        print(f"tiny_model: {error}", file=sys.stderr)
        return USAGE
    print(f"{folder}: a model of {REACH} letters' reach, in mlx-lm's format, and its tokenizer of bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
