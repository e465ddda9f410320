"""No document shows a figure of a GPU before one was measured.

``docs/results.md`` says whether any was: while it has the sentence below, no table and no sentence may give a time, a
rate or a speed-up of a runtime that runs on GPUs only. Sizes, counts of kernels and answers need no GPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
NONE_YET = "No GPU figure has been measured"
OPEN = ("", "-", "skipped", "not measured")

_ON_GPU = re.compile(
    r"\b(tensorrt(-rtx)?|onnxruntime-(cuda|tensorrt)|CUDA|GPU|trtexec|H100|A100|L4|RTX \d{4})\b", re.IGNORECASE
)
_OF_SPEED = re.compile(r"\b(ms|seconds?|images/s|img/s|qps|speed|p99|latency|TFLOP|GB/s)\b|µs", re.IGNORECASE)
_FIGURE = re.compile(
    r"\d[\d.,]*\s*(ms|µs|s|seconds|images/s|img/s|qps|TFLOP/s|GB/s|×|x|times)(?![\w-])(?!\s*\d)", re.IGNORECASE
)
_ELSEWHERE = re.compile(r"on (a|the) CPU|`build-engine` takes", re.IGNORECASE)  # the build needs no GPU


def tables(text: str) -> Iterator[list[list[str]]]:
    """Rows of cells of every table, the header first."""
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
        yield [row for row in rows if not re.fullmatch(r"[-: ]*", "".join(row))]


def sentences(text: str) -> Iterator[str]:
    """Of the prose: no tables and no code."""
    prose = re.sub(r"(?s:```.*?```)|^\|.*$", "", text, flags=re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n|^- ", prose, flags=re.MULTILINE):
        yield from re.split(r"(?<=[.:;])\s+", " ".join(paragraph.split()))


def figures(text: str) -> list[str]:
    """Cells and sentences that give a time, a rate or a speed of something on a GPU."""
    found = []
    for header, *rows in tables(text):
        for row in rows:
            if _ON_GPU.search(" ".join(row[:2])):
                found += [
                    f"{row[0]}: {name}: {cell}"
                    for name, cell in zip(header, row, strict=False)
                    if _OF_SPEED.search(name) and cell not in OPEN and re.search(r"\d", cell)
                ]
            if _OF_SPEED.search(row[0]):
                found += [
                    f"{row[0]}: {name}: {cell}"
                    for name, cell in zip(header[1:], row[1:], strict=False)
                    if _ON_GPU.search(name) and re.search(r"\d", cell)
                ]
    found += [
        text
        for text in sentences(text)
        if _ON_GPU.search(text) and _FIGURE.search(text) and not _ELSEWHERE.search(text)
    ]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_shows_a_figure_that_no_gpu_showed(page: Path) -> None:
    if NONE_YET not in (ROOT / "docs" / "results.md").read_text():
        pytest.skip("docs/results.md has figures of a GPU")
    assert figures(page.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "| artifact | runtime | ms b8 |\n| --- | --- | --: |\n| a.engine | tensorrt | 0.41 |\n",
        "| runtime | images/s |\n| --- | --: |\n| onnxruntime-cuda, FP16 | 5200 |\n",
        "| | NVIDIA L4, TensorRT | CPU |\n| --- | --: | --: |\n| ms | 0.4 | 12 |\n",
        "On an L4 the engine takes 0.41 ms.",
        "INT8 is 2.3 × as fast as FP16 with TensorRT.",
        "| | MB |\n| --- | --: |\n| a | 1 |\n\nThe engine built by TensorRT reaches 5,200 images/s at batch 8.",
    ],
)
def test_a_figure_in_a_table_or_a_sentence_is_found(text: str) -> None:
    assert len(figures(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "| artifact | runtime | MB | ms b8 |\n| --- | --- | --: | --: |\n| a.engine | tensorrt-rtx | 6.3 | skipped |\n",
        "| runtime | ms |\n| --- | --: |\n| onnxruntime-cpu | 6.51 |\n| onnxruntime-tensorrt | not measured |\n",
        "| | FP32 | INT8 |\n| --- | --: | --: |\n| TensorRT-RTX engine, MB | 59.5 | 16.5 |\n",
        "TensorRT-RTX builds 8 of 8 layers in INT8.",
        "INT8 is 2.3 × as fast as FP32 on ONNX Runtime.",
        "`--server-ms 20` finds the rate whose p99 stays within 20 ms.",
    ],
)
def test_sizes_and_figures_of_a_cpu_are_let_through(text: str) -> None:
    assert figures(text) == []
