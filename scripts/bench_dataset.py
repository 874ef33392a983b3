"""The data set compiler: rows a second beside plain json.loads over the same file, and memory."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from secrets_corpus import judge

from ollama_trainer.secrets import SecretFinder

Figures = dict[str, Any]

SIZES = (1_000, 10_000, 100_000, 1_000_000)
_TURNS = 3
_TOPICS = ("invoice", "kiln", "delivery", "bicycle", "contract", "holiday", "printer", "garden")
_TEXT = """
the order that we placed on Monday has not come yet please look where it is and write to the
customer when it will be there so that nobody waits at the door for it again as last time the page
shows a table with three columns and a button below it which opens the form for returns
"""
_WORDS = _TEXT.split()


def rows(count: int) -> Iterator[str]:
    """Rows as the app writes them: questions, hand-overs and page snapshots, of 500 to 1,500 bytes.

    One in a hundred repeats another, one in ten is bad, one in twenty has an answer that others
    have, too, one in a thousand holds a secret.
    """
    chance = random.Random(7)
    for number in range(count):
        place = number if number % 100 else max(0, number - 50)
        dice = random.Random(place)
        task = f"{dice.choice(_TOPICS)} {place}: {' '.join(dice.choices(_WORDS, k=40))}"
        given: Any = task
        if place % 3 == 0:
            cells = "".join(f"<td>{word}</td>" for word in dice.choices(_WORDS, k=25))
            given = {"task": task, "pageSnapshot": f'<table class="list"><tr>{cells}</tr></table>'}
        answer: Any = " ".join(dice.choices(_WORDS, k=50))
        if place % 4 == 0:
            answer = {"action": "click", "selector": f"#row-{place}", "why": answer}
        if place % 20 == 7:
            answer = f"I have passed it on to the {dice.choice(_TOPICS)} team."
        if place % 1000 == 1:
            answer = f"The password is: {dice.randbytes(9).hex()}"
        yield json.dumps(
            {
                "targetType": "agent",
                "targetId": "a1",
                "executionId": f"run-{number}",
                "input": json.dumps(given),
                "output": json.dumps(answer),
                "label": "bad" if place % 10 == 9 else "good",
                "notes": None,
                "createdAt": 1767225600000 + chance.randrange(10**9),
            }
        )


def bench_dataset(console: Console) -> dict[str, Any]:
    """Both readers over files of each size, and the finder of secrets on the planted corpus."""
    figures = []
    with tempfile.TemporaryDirectory(prefix="ollama-trainer-bench-") as directory:
        path = Path(directory) / "rows.jsonl"
        for count in SIZES:
            with path.open("w", encoding="utf-8") as file:
                file.writelines(f"{row}\n" for row in rows(count))
            figures.append({"rows": count, "file_bytes": path.stat().st_size, **_measured(path)})
            console.print(figures[-1])
    return {"benchmark": "dataset", "sizes": figures, "secrets": judge(SecretFinder())}


def _measured(path: Path) -> dict[str, Any]:
    """Both in turns, each in a process of its own that takes its own time."""
    plain: list[Figures] = []
    compiled: list[Figures] = []
    inspected: list[Figures] = []
    for _ in range(_TURNS):
        plain.append(_in_process(_PLAIN, path))
        compiled.append(_in_process(_COMPILE, path))
        inspected.append(_in_process(_INSPECT, path))
    return {
        "json_loads_rows_per_s": _rows_per_s(plain),
        "rows_per_s": _rows_per_s(compiled),
        "share_of_json_loads": _share(plain, compiled),
        "inspect_rows_per_s": _rows_per_s(inspected),
        "inspect_share_of_json_loads": _share(plain, inspected),
        "inspect_s": min(one["seconds"] for one in inspected),
        "peak_megabytes": max(one["peak_megabytes"] for one in inspected),
    }


def _rows_per_s(turns: Sequence[Figures]) -> int:
    return int(max(one["rows"] / one["seconds"] for one in turns))


def _share(plain: Sequence[Figures], others: Sequence[Figures]) -> float:
    """Within each turn: a machine that is slow for a minute is slow for both."""
    pairs = zip(plain, others, strict=True)
    return float(statistics.median(one["seconds"] / other["seconds"] for one, other in pairs))


_PLAIN = """
count, started = 0, time.perf_counter()
for line in open(path, "rb"):
    json.loads(line)
    count += 1
"""
#: What is done with every row, and then all of `ollama-trainer dataset inspect`, which renders
#: and counts up to 512 examples with the base's template and tokenizer.
_COMPILE = """
from ollama_trainer.compiler import compile_dataset
from ollama_trainer.records import DatasetOptions
started = time.perf_counter()
with compile_dataset(path, DatasetOptions()) as compiled:
    count = compiled.rows_read
"""
_INSPECT = """
from ollama_trainer.pipeline.dataset import inspect
from ollama_trainer.records import DatasetOptions, TrainingOptions
import llama_cpp
started = time.perf_counter()
count = inspect(path, "smollm2", TrainingOptions(), DatasetOptions(), path.parent).rows_read
"""
_AROUND = """
import json, resource, sys, time
from pathlib import Path
path = Path(sys.argv[1])
{code}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({{"seconds": time.perf_counter() - started, "rows": count,
                   "peak_megabytes": peak}}))
"""


def _in_process(code: str, path: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", _AROUND.format(code=code), str(path)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures
