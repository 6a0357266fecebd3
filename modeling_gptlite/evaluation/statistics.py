"""Statistics of predictions and of generated text: confidence interval, calibration, similarity, words, copies.

scores = score_tokens(model, EvaluationWindows(ids, context=256))
low, high = confidence_interval(scores.losses)
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from ..data.windows import IGNORED, EvaluationWindows
from ..decoding import SAMPLING, first_token
from ..training.metrics import measure_tokens


_HASH_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2 ** 64


# ---- Predictions ---------------------------------------------------------------------------------------------------


@dataclass
class TokenScores:
    """One value per target of a split, in the order of the text; each array is `(targets,)`."""

    losses: np.ndarray  # -ln p of the target, in nats
    confidences: np.ndarray  # probability of the likeliest token
    hits: np.ndarray  # whether the likeliest token is the target


def score_tokens(model, windows: EvaluationWindows, batch_size: int = 64) -> TokenScores:
    """Score every target of `windows` in the model's own precision. The mean of `losses` is that of `evaluate_loss`."""
    batches = []
    for scores, targets in measure_tokens(model, windows, batch_size, _token_scores):
        counted = targets.ne(IGNORED)
        batches.append([tensor[counted].cpu().numpy() for tensor in scores])
    return TokenScores(*map(np.concatenate, zip(*batches, strict=True)))


def _token_scores(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    log_probabilities = logits.float().log_softmax(-1)
    best, guesses = log_probabilities.max(-1)
    losses = -log_probabilities.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return losses, best.exp(), guesses.eq(targets)


def confidence_interval(values: np.ndarray, blocks: int = 50, resamples: int = 2000) -> tuple[float, float]:
    """The 95 % interval of the mean of `values`, by a block bootstrap.

    The losses of neighboring tokens are correlated, so that `blocks` blocks of consecutive tokens are drawn with
    replacement, not single tokens (Kuensch, 1989). To compare two models on one text, pass the difference of their
    losses.
    """
    parts = np.array_split(np.asarray(values, dtype=np.float64), min(blocks, len(values)))
    sums, counts = np.array([part.sum() for part in parts]), np.array([len(part) for part in parts])
    drawn = np.random.default_rng(0).integers(len(parts), size=(resamples, len(parts)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)


def expected_calibration_error(confidences: np.ndarray, hits: np.ndarray, bins: int = 15) -> float:
    """The expected calibration error (Guo et al., 2017), between 0 (calibrated) and 1.

    |accuracy - mean confidence| in `bins` bins of equal width, weighted by the number of tokens in them.
    """
    index = np.minimum((confidences * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(index, weights=hits.astype(np.float64) - confidences, minlength=bins)
    return float(np.abs(gaps).sum() / len(hits))


# ---- Continuations -------------------------------------------------------------------------------------------------


@torch.inference_mode()
def write_continuations(
    model,
    tokenizer,
    ids: np.ndarray,
    count: int,
    prompt_tokens: int,
    length: int,
    temperature: float = SAMPLING["temperature"],
    batch_size: int | None = None,
) -> tuple[list[str], list[str]]:
    """Sample continuations at `count` evenly spaced positions of `ids`.

    Args:
        ids: `(tokens,)` of a text that the model was not trained on.
        prompt_tokens: Tokens of the prompt before each position.
        length: Tokens to generate; generation does not stop at the end of text.
        batch_size: Texts that are generated at the same time. Default: all.

    Returns:
        The continuations and the texts that they replace, without the prompts.
    """
    length = min(length, len(ids) - 1)
    prompt_tokens = min(prompt_tokens, len(ids) - length)
    starts = np.linspace(0, len(ids) - prompt_tokens - length, count).astype(np.int64)
    windows = ids[starts[:, None] + np.arange(prompt_tokens + length)].astype(np.int64)
    prompts = torch.from_numpy(windows[:, :prompt_tokens]).to(model.device)
    if (begin := first_token(tokenizer)) is not None:
        prompts[:, 0] = begin
    settings = {**SAMPLING, "temperature": temperature, "top_p": 1.0, "max_new_tokens": length, "eos_token_id": None}
    texts = []
    for part in prompts.split(batch_size or count):
        mask = torch.ones_like(part)
        output = model.eval().generate(part, attention_mask=mask, **settings, pad_token_id=tokenizer.pad_token_id)
        texts += tokenizer.batch_decode(output[:, prompt_tokens:])
    return texts, tokenizer.batch_decode(windows[:, prompt_tokens:])


def similarity(texts: list[str], references: list[str]) -> dict[str, float | str]:
    """BLEU over characters (without white space) and chrF of `texts`, from 0 to 100, with sacrebleu's signatures.

    Raises:
        ImportError: sacrebleu is not installed.
    """
    from sacrebleu.metrics import BLEU, CHRF

    result = {}
    for name, metric in (("bleu", BLEU(tokenize="char")), ("chrf", CHRF())):
        result[name] = metric.corpus_score(texts, [references]).score
        result[f"{name}_signature"] = str(metric.get_signature())
    return result


def words(text: str) -> list[str]:
    """The words of `text` in lower case: letters, with apostrophes between them."""
    return re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", text.lower())


def whole_words(text: str) -> list[str]:
    """The words of a passage, without the first and the last, which may be incomplete."""
    return words(re.sub(r"^[\w'’]+|[\w'’]+$", "", text))


def vocabulary(pieces: Iterable[str]) -> set[str]:
    """All words of a text that is given in pieces."""
    known, rest = set(), ""
    for piece in pieces:
        text = rest + piece
        cut = max(text.rfind(" "), text.rfind("\n")) + 1
        known.update(words(text[:cut]))
        rest = text[cut:]
    return known | set(words(rest))


def distinct(passages: list[list[str]], n: int) -> float:
    """Number of different n-grams of words / number of n-grams (Li et al., 2016). It falls with the amount of text."""
    grams = [gram for passage in passages for gram in zip(*(passage[i:] for i in range(n)), strict=False)]
    return len(set(grams)) / max(len(grams), 1)


def known_words(passages: list[list[str]], known: set[str]) -> float:
    """The fraction of words that are in `known`."""
    found = [word in known for passage in passages for word in passage]
    return sum(found) / max(len(found), 1)


def longest_copy(texts: list[str], pieces: Iterable[str]) -> str:
    """The longest string that is in one of `texts` and in the text that `pieces` make up.

    Args:
        pieces: Read about log2(length of the longest text) times, so not a generator.
    """
    shortest, longest, copy = 0, max(map(len, texts), default=0), ""
    while shortest < longest:  # parts of a copied span are copied too, so the length can be bisected
        length = (shortest + longest + 1) // 2
        if found := _copied_span(texts, pieces, length):
            shortest, copy = length, found
        else:
            longest = length - 1
    return copy


def _copied_span(texts: list[str], pieces: Iterable[str], length: int) -> str | None:
    wanted = np.unique(np.concatenate([_span_hashes(text, length) for text in texts]))
    tail = ""
    for piece in pieces:
        passage = tail + piece
        for start in np.flatnonzero(np.isin(_span_hashes(passage, length), wanted)):
            span = passage[start : start + length]
            if any(span in text for text in texts):
                return span
        tail = passage[len(passage) - length + 1 :] if len(passage) >= length else passage
    return None


def _span_hashes(text: str, length: int) -> np.ndarray:
    """A hash of every `length` consecutive characters: sum of c_j B^j modulo 2 ** 64, from prefix sums."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    if len(codes) < length:
        return np.empty(0, np.uint64)
    powers, inverses = (
        np.cumprod(np.full(len(codes), base, dtype=np.uint64)) for base in (_HASH_BASE, pow(_HASH_BASE, -1, 1 << 64))
    )
    prefix = np.concatenate(([np.uint64(0)], np.cumsum(codes * powers)))
    return (prefix[length:] - prefix[:-length]) * inverses[: len(codes) - length + 1]
