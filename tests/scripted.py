"""Models that answer what a script says, by construction: for stops, tool calls and thinking.

A llama of one layer whose attention and feed-forward add next to nothing, so that the next token
follows from the last one alone: every token of the script has an embedding at right angles to the
others', and the output row of a token points where those of the tokens before it point. Pieces of
the script are single tokens, whatever they spell. The layer's weights are small and not zero, or
no adapter could learn anything: behind a matrix of zeros there are no gradients.

    write_scripted(path, {"<|says|>": ("It is", " red.")}, template=TEMPLATE)

answers `It is red.` to every prompt that ends in `<|says|>`, and stops.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.tiny_models import _MERGES, _byte_alphabet

END = "<|im_end|>"
#: What the prompts of `TEMPLATE` end in: by whether tools were given, and whether one answered.
SAYS, CALLS = "<|says|>", "<|calls|>"
_SPECIAL = ("<|endoftext|>", "<|im_start|>", END, SAYS, CALLS)
_LAYERS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_HEADS = 4
#: How much likelier the next token is than any other, as the difference of their logits.
_MARGIN = 14.0

#: ChatML whose prompts say by their last token what is to follow: a call where there are tools,
#: but for what follows a tool's answer.
TEMPLATE = (
    "{% set last = namespace(role='') %}{% if tools %}<|im_start|>system\n# Tools\n"
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "Call one as <tool_call>\n{\"name\": <its name>, \"arguments\": <an object>}\n</tool_call>"
    "<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ message.content }}\n"
    "</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}"
    "{% if tools and last.role != 'tool' %}<|calls|>{% else %}<|says|>{% endif %}{% endif %}"
    "{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}"
    "{% if message.content or not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<tool_call>\\n{\"name\": \"' + call.function.name + '\", \"arguments\": ' }}"
    "{{ call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}{% endfor %}"
    "<|im_end|>\n{% endif %}{% set last.role = message.role %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if tools and last.role != 'tool' %}<|calls|>{% else %}<|says|>{% endif %}"
    "{% endif %}"
)  # fmt: skip
#: The same with thoughts, which can be left out: a model that thinks after `<|says|>` answers at
#: once after thoughts that are empty.
THINKING = TEMPLATE.replace(
    "{{ message.content or '' }}",
    "{% if message.reasoning_content %}"
    "{{ '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ message.content or '' }}",
) + (
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
)
#: What `TEMPLATE` does, as Ollama's own kind of template.
GO_TEMPLATE = """{{- if or .System .Tools }}<|im_start|>system
{{ .System }}{{ if .Tools }}
# Tools
{{ range .Tools }}{{ . }}
{{ end }}{{ end }}<|im_end|>
{{ end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>
{{ else if eq .Role "assistant" }}<|im_start|>assistant
{{ if eq (len .ToolCalls) 0 }}<|says|>{{ else }}<|calls|>{{ end }}{{ .Content }}
{{- if .ToolCalls }}<tool_call>
{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}
{{ end }}</tool_call>{{ end }}{{ if not $last }}<|im_end|>
{{ end }}
{{- else if eq .Role "tool" }}<|im_start|>user
<tool_response>
{{ .Content }}
</tool_response><|im_end|>
{{ end }}
{{- if and $last (ne .Role "assistant") }}<|im_start|>assistant
{{ if and $.Tools (ne .Role "tool") }}<|calls|>{{ else }}<|says|>{{ end }}{{ end }}
{{- end }}"""
#: An answer that is a call of a tool, in the words of `TEMPLATE`. Its first words are two pieces:
#: llama.cpp's server refuses a template whose mark for calls is one token that is not a control.
CALL = (
    "<tool", "_call>\n", '{"name": "weather", ', '"arguments": {"city": "Oslo"}}', "\n</tool_call>",
)  # fmt: skip
ANSWER = ("The kiln", " is red", " and hot.")
THOUGHT = ("<think>\n", "Kilns burn.", "\n</think>\n\n")


def write_scripted(
    path: Path,
    answers: Mapping[str, Sequence[str]],
    *,
    template: str | None = TEMPLATE,
    endless: Collection[str] = (),
    kind: str = "Q8_0",
    width: int = 256,
    context: int = 2048,
) -> Path:
    """Writes such a model as a GGUF; returns `path`.

    Args:
        answers: what follows a prompt, in pieces, by the text of the prompt's last token; texts of
            control tokens that are not in the vocabulary join it. Then comes `END`.
        template: its Jinja template; None for none.
        endless: the last tokens of prompts whose answers begin anew where they should end.
        kind: type of the layer's weights; embeddings are F16 or F32.
        width: of the embeddings: a multiple of 32, of 256 for K-quants.

    Raises:
        ValueError: a token would have to be followed by two, or there are too many.
    """
    from gguf import GGUFWriter

    follower = _followers(answers, endless)
    special = tuple(dict.fromkeys([*_SPECIAL, *answers]))
    pieces = tuple(dict.fromkeys(p for answer in answers.values() for p in answer))
    tokens = (*special, *_byte_alphabet(), *(m.replace(" ", "") for m in _MERGES), *pieces)
    ids = {text: index for index, text in enumerate(tokens)}
    if len(ids) != len(tokens) or len(follower) + 1 > width:
        raise ValueError("a piece is a token already, or the script has more than fit the width")
    writer = GGUFWriter(str(path), "llama")
    _write_metadata(writer, width, context, template)
    _write_vocabulary(writer, tokens, special, pieces)
    for name, values in _weights({ids[a]: ids[b] for a, b in follower.items()}, len(tokens), width):
        _write_tensor(writer, name, values.astype(np.float32), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _followers(answers: Mapping[str, Sequence[str]], endless: Collection[str]) -> dict[str, str]:
    """What follows each token of the script."""
    found: dict[str, str] = {}
    for last, answer in answers.items():
        end = answer[0] if last in endless else END
        for one, following in zip((last, *answer), (*answer, end), strict=True):
            if found.setdefault(one, following) != following:
                raise ValueError(f"{one!r} is followed by {found[one]!r} and by {following!r}")
    return found


def _write_metadata(writer: Any, width: int, context: int, template: str | None) -> None:
    writer.add_name("scripted")
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(width)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // _HEADS)
    writer.add_rope_freq_base(10000.0)
    if template is not None:
        writer.add_chat_template(template)


def _write_vocabulary(
    writer: Any, tokens: Sequence[str], special: Sequence[str], pieces: Sequence[str]
) -> None:
    from gguf import TokenType

    kinds = dict.fromkeys(special, TokenType.CONTROL)
    kinds |= dict.fromkeys(pieces, TokenType.USER_DEFINED)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(list(tokens))
    writer.add_token_types([kinds.get(token, TokenType.NORMAL) for token in tokens])
    writer.add_token_merges(list(_MERGES))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(tokens.index(END))
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)


def _weights(
    follower: Mapping[int, int], n_tokens: int, width: int
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Names and values of all tensors, for ids and those of the tokens that follow them."""
    chance = np.random.default_rng(1)
    directions = chance.normal(0, width**-0.5, (n_tokens, width))
    basis, _ = np.linalg.qr(chance.normal(0, 1, (width, width)))
    directions[list(follower)] = basis[: len(follower)]
    output = np.zeros((n_tokens, width))
    for one, following in follower.items():
        # The last norm makes the length of what it is given sqrt(width).
        output[following] += directions[one] * _MARGIN / width**0.5
    yield "token_embd", directions * width**0.5
    yield "output", output
    for norm in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        yield norm, np.ones(width)
    for layer in _LAYERS:
        yield f"blk.0.{layer}", chance.normal(0, 0.3 / width**0.5, (width, width))


def _write_tensor(writer: Any, name: str, values: NDArray[np.float32], kind: str) -> None:
    import libgguf
    from gguf import GGMLQuantizationType

    if values.ndim == 1 or kind == "F32":
        writer.add_tensor(f"{name}.weight", values)
    elif kind == "F16" or not name.startswith("blk."):
        writer.add_tensor(f"{name}.weight", values.astype(np.float16))
    else:
        form = GGMLQuantizationType[kind]
        raw = libgguf.quantize_rows_raw(form, np.ascontiguousarray(values), *values.shape)
        rows = np.frombuffer(raw, dtype=np.uint8).reshape(len(values), -1)
        writer.add_tensor(f"{name}.weight", rows, raw_dtype=form)
