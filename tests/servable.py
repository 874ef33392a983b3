"""Tiny GGUFs that llama.cpp loads: a llama of one layer that writes AAAA, with special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

WIDTH = 32
#: What templates of all families spell, beside <unk>, <s> and </s>.
SPECIAL = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<start_of_turn>", "<end_of_turn>", "[INST]",
    "[/INST]", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|user|>", "<|system|>",
    "<|assistant|>", "<|end|>", "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>",
)  # fmt: skip


def write_servable(
    path: Path,
    *,
    template: str | None = None,
    special: Sequence[str] = SPECIAL,
    architecture: str = "llama",
    context: int = 4096,
    add_bos: bool | None = None,
    bos: str = "<s>",
    eos: str | None = "</s>",
) -> Path:
    """Writes such a file; returns `path`.

    Args:
        template: its Jinja template; None for none.
        special: control tokens of its vocabulary.
        architecture: a name; any that is built as llama is, to be loaded.
        add_bos: whether BOS is said to be added; None: nothing is said (llama.cpp adds it).
        bos: the token that begins a text.
        eos: the one that ends it; None where the vocabulary does not say which.
    """
    from gguf import GGUFWriter, TokenType

    controls = ["<s>", "</s>", *special]
    tokens = ["<unk>", *controls, "▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    control, normal = [TokenType.CONTROL] * len(controls), TokenType.NORMAL
    kinds = [TokenType.UNKNOWN, *control, normal, *[TokenType.BYTE] * 256]
    writer = GGUFWriter(str(path), architecture)
    writer.add_context_length(context)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(tokens.index(bos))
    if eos is not None:
        writer.add_eos_token_id(tokens.index(eos))
    writer.add_unk_token_id(0)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    writer.add_add_space_prefix(False)
    if template is not None:
        writer.add_chat_template(template)
    chance = np.random.default_rng(1)
    square, vector = (WIDTH, WIDTH), (WIDTH,)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (len(tokens), WIDTH), "output_norm": vector,
        "blk.0.attn_norm": vector, "blk.0.ffn_norm": vector,
    }  # fmt: skip
    layers = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes |= {f"blk.0.{layer}": square for layer in layers}
    for name, shape in shapes.items():
        values = chance.normal(0, 0.02, shape) + (1.0 if "norm" in name else 0.0)
        if name == "token_embd":
            # Every token is followed by an A.
            values[:, 0] = 1.0
            values[tokens.index("<0x41>"), 0] = 9.0
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
