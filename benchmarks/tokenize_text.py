"""Compare tokenizing a long text in lmconsole with the package ``tokenizers`` alone: time and peak memory.

    python benchmarks/tokenize_text.py [--megabytes 100] [--rounds 3] [--bpe DIR] [--json FILE]

The text is generated: words with the frequencies of natural language (Zipf's law) in lines of natural length, in one
file. lmconsole does all that a first run does: it splits and checks the file, trains a byte-level BPE or reads GPT-1's
(``--bpe``, a folder with its two files), encodes, computes the fingerprint, and writes the cache. ``tokenizers`` alone
trains on the same file, reads the lines into memory, and encodes them; its result stays in its own objects. Both run in
fresh processes and take turns.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))  # an installed lmconsole takes precedence

VOCABULARY = {"byte-level BPE": 16_384, "GPT-1 BPE": 40_479}
WORDS = 200_000
LINE_WORDS = 60


def write_text(path: Path, size: int) -> None:
    """Write ``size`` bytes of generated text, the same every time."""
    import numpy as np

    draw = np.random.default_rng(0)
    syllables = [a + b for a in ("", *"bcdfglmnprst", "st", "th") for b in (*"aeiou", "ai", "ea", "or", "an", "in")]
    lengths = draw.integers(1, 5, WORDS)
    words = ["".join(draw.choice(syllables, n)) for n in lengths]
    frequencies = 1 / (np.arange(WORDS) + 2.7)
    frequencies /= frequencies.sum()
    written = 0
    with path.open("w") as file:
        while written < size:
            picked = draw.choice(WORDS, 100 * LINE_WORDS, p=frequencies)
            for start in range(0, len(picked), LINE_WORDS):
                line = " ".join(words[i] for i in picked[start : start + LINE_WORDS]).capitalize() + " .\n"
                written += file.write(line)


def ours(text: Path, bpe: Path | None) -> int:
    """Tokenize with lmconsole and an empty cache, and return the number of tokens."""
    from lmconsole.data.corpus import load_corpus

    vocabulary = VOCABULARY["GPT-1 BPE" if bpe else "byte-level BPE"]
    corpus = load_corpus("tokens", text, vocabulary=vocabulary, cache=text.parent / "cache")
    return sum(corpus.counts().values())


def alone(text: Path, bpe: Path | None) -> int:
    """Tokenize with ``tokenizers`` alone, and return the number of tokens."""
    import tokenizers

    from lmconsole.data.tokenizer import ENCODER_FILE, MERGES_FILE, gpt1_tokenizer

    if bpe:
        encoder, merges = ((bpe / name, (bpe / name).read_bytes()) for name in (ENCODER_FILE, MERGES_FILE))
        backend = gpt1_tokenizer(encoder, merges).backend
    else:
        backend = tokenizers.Tokenizer(tokenizers.models.BPE())
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=VOCABULARY["byte-level BPE"] - 1, min_frequency=2, show_progress=False, initial_alphabet=alphabet
        )
        backend.train([str(text)], trainer)
    lines = text.read_text(encoding="utf-8").splitlines(keepends=True)
    encodings = backend.encode_batch_fast(lines, add_special_tokens=False)
    return sum(map(len, encodings))


def measure(name: str, text: Path, bpe: Path | None) -> dict[str, Any]:
    """Run ``ours`` or ``alone`` in a fresh process."""
    command = [sys.executable, __file__, "--child", name, "--text", str(text), *(["--bpe", str(bpe)] if bpe else [])]
    for entry in (text.parent / "cache").glob("*"):
        entry.unlink()
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def main() -> None:
    """Measure each tokenizer, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bpe", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=("ours", "alone"), help=argparse.SUPPRESS)
    parser.add_argument("--text", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        began = time.perf_counter()
        tokens = {"ours": ours, "alone": alone}[options.child](options.text, options.bpe)
        seconds = time.perf_counter() - began
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "peak_mib": peak_mib, "tokens": tokens}))
        return
    results: dict[str, Any] = {"megabytes": options.megabytes}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        write_text(text, options.megabytes * 10**6)
        for bpe in [None, options.bpe] if options.bpe else [None]:
            if bpe:
                for file in ("encoder_bpe_40000.json", "vocab_40000.bpe"):
                    (text.parent / file).write_bytes((bpe / file).read_bytes())
            rounds = [(measure("ours", text, bpe), measure("alone", text, bpe)) for _ in range(options.rounds)]
            medians = {
                side: {key: statistics.median(pair[at][key] for pair in rounds) for key in rounds[0][at]}
                for at, side in enumerate(("lmconsole", "tokenizers alone"))
            }
            speed = statistics.median(pair[1]["seconds"] / pair[0]["seconds"] for pair in rounds)
            name = "GPT-1 BPE" if bpe else "byte-level BPE"
            results[name] = {**medians, "relative_speed": speed}
            for side, found in medians.items():
                print(
                    f"{name}, {side}: {found['seconds']:.1f} s, peak memory {found['peak_mib']:,.0f} MiB, "
                    f"{found['tokens']:,.0f} tokens"
                )
            print(f"{name}: {speed:.2f} times as fast as tokenizers alone (goal: 0.8 or more)")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
