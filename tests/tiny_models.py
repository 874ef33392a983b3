"""Tiny random llama models as GGUF files, for tests that need no real language.

The files are made as llama.cpp's converter makes them, without any code of `ollama_trainer.gguf`:
what one gets wrong, the other finds.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

HEADS, KV_HEADS, HIDDEN, INTERMEDIATE, LAYERS, CONTEXT = 4, 2, 256, 512, 2, 512
#: Types that the linear layers can be written in.
KINDS = ("F32", "F16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MERGES = (
    "t h", "th e", "Ġ the", "i n", "a n", "Ġ i", "Ġi s", "o r", "e r", "r e", "o n", "Ġ a",
    "u s", "us er", "a s", "as s", "i s", "is t", "an t", "ass ist", "assist ant",
)  # fmt: skip


def _byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    of_byte = {byte: chr(byte) for byte in printable}
    of_byte |= {byte: chr(256 + index) for index, byte in enumerate(others)}
    return [of_byte[byte] for byte in range(256)]


#: Special tokens first, as in SmolLM2: the end of turn has id 2. BOS, and padding, is 0.
TOKENS = (*SPECIAL, *_byte_alphabet(), *(merge.replace(" ", "") for merge in _MERGES))


def tiny_model(*, tied: bool = True, seed: int = 1) -> LlamaForCausalLM:
    """A random model whose next token is neither certain nor a mere guess (2 to 3 bits)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.uniform_(0.8, 1.2, generator=generator)
            else:
                is_vocabulary = "embed" in name or "lm_head" in name
                weight.normal_(0, 0.12 if is_vocabulary else 0.06, generator=generator)
    return model.eval()


def write_gguf(
    model: LlamaForCausalLM,
    path: Path,
    kind: str = "F32",
    *,
    template: str | None = CHATML,
    add_bos: bool = False,
    architecture: str = "llama",
) -> Path:
    """Writes `model` as a GGUF with its linear layers in `kind`; returns `path`.

    Norms are always F32; the embeddings are F16 unless `kind` is F32.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(str(path), architecture)
    _write_metadata(writer, template, add_bos)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        _write_tensor(writer, name, tensor.float().numpy(), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_vocabulary(path: Path, template: str = CHATML) -> Path:
    """Writes the tiny model's tokenizer and template alone, for what looks at no weights."""
    from gguf import GGUFWriter

    writer = GGUFWriter(str(path), "llama")
    _write_metadata(writer, template, add_bos=False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_metadata(writer: Any, template: str | None, add_bos: bool) -> None:
    from gguf import TokenType

    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(list(TOKENS))
    normal, control = TokenType.NORMAL, TokenType.CONTROL
    writer.add_token_types([control if token in SPECIAL else normal for token in TOKENS])
    writer.add_token_merges(list(_MERGES))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(add_bos)
    if template is not None:
        writer.add_chat_template(template)


_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_name(parameter: str) -> str:
    """`model.layers.0.mlp.up_proj.weight` -> `blk.0.ffn_up.weight`."""
    module = parameter.removesuffix(".weight")
    if module in _NAMES:
        return f"{_NAMES[module]}.weight"
    block, _, rest = module.removeprefix("model.layers.").partition(".")
    return f"blk.{block}.{_NAMES[rest]}.weight"


def rotary_pairs(n_rows: int, heads: int) -> NDArray[np.int64]:
    """Which row of a q or k weight of transformers each row of llama.cpp's is.

    transformers turns row i of a head together with row i + half, llama.cpp neighbouring rows.
    """
    width = n_rows // heads
    order = [
        head * width + half * (width // 2) + pair
        for head in range(heads)
        for pair in range(width // 2)
        for half in range(2)
    ]
    return np.array(order)


def _write_tensor(writer: Any, name: str, values: NDArray[np.float32], kind: str) -> None:
    import libgguf
    from gguf import GGMLQuantizationType

    if "q_proj" in name:
        values = values[rotary_pairs(len(values), HEADS)]
    if "k_proj" in name:
        values = values[rotary_pairs(len(values), KV_HEADS)]
    is_linear = values.ndim == 2 and "embed" not in name and "lm_head" not in name
    if values.ndim == 1 or kind == "F32":
        writer.add_tensor(gguf_name(name), values)
    elif kind == "F16" or not is_linear:
        writer.add_tensor(gguf_name(name), values.astype(np.float16))
    else:
        form = GGMLQuantizationType[kind]
        raw = libgguf.quantize_rows_raw(form, np.ascontiguousarray(values), *values.shape)
        rows = np.frombuffer(raw, dtype=np.uint8).reshape(len(values), -1)
        writer.add_tensor(gguf_name(name), rows, raw_dtype=form)


def split_gguf(whole: Path, directory: Path) -> list[Path]:
    """The same model in files of seven tensors, written by gguf."""
    from gguf import GGUFReader, GGUFWriter

    reader = GGUFReader(whole)
    writer = GGUFWriter(directory / "split.gguf", "llama", split_max_tensors=7)
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "general.architecture")):
            sub_type = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=sub_type)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(directory.glob("split-*.gguf"))
