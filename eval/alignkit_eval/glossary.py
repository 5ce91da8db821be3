"""What every metric of the built-in suites means, in a sentence each: tooltips of reports, and docs/metrics.md."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

GLOSSARY: Mapping[str, Mapping[str, str]] = {
    "prefs": {
        "accuracy_sum": "Share of held-out pairs whose chosen completion has the higher log-probability (sum over tokens); ties count half.",
        "accuracy_mean": "Share of held-out pairs whose chosen completion has the higher mean log-probability per token; ties count half.",
        "accuracy_ref": "Share of held-out pairs whose chosen completion gained more log-probability against the start model than the rejected one.",
        "accuracy_best": "Share of rows whose chosen completion has a higher log-probability than every rejected one.",
        "accuracy_length": "Share of held-out pairs whose chosen completion is the longer one: the accuracy of preferring length alone.",
        "accuracy_sum/*": "Accuracy by sum on the pairs whose chosen completion is shorter than, as long as, or longer than the rejected one.",
        "accuracy_sum/category/*": "Accuracy by sum on the pairs of a category.",
        "margin_sum": "Mean log-probability of the chosen completion minus that of the rejected one, in nats.",
        "margin_mean": "Mean log-probability per token of the chosen completion minus that of the rejected one, in nats.",
        "margin_ref": "Mean of the margin by sum minus that of the start model, in nats.",
        "logp_chosen": "Mean log-probability per token of chosen completions, in nats.",
        "logp_rejected": "Mean log-probability per token of rejected completions, in nats.",
        "brier": "Mean squared distance from 1 of the model's probability of the chosen completion: 0 is perfect, 0.25 is chance.",
        "ece": "Expected calibration error: mean distance of the model's confidence in a preference from how often it is right.",
    },
    "perplexity": {
        "perplexity": "Exponential of the negative log-likelihood per token over the corpus; comparable with one tokenizer only, lower is better.",
        "bits_per_byte": "Negative log-likelihood per UTF-8 byte of text, in bits; comparable across tokenizers, lower is better.",
        "byte_perplexity": "Exponential of the negative log-likelihood per UTF-8 byte of text, as in lm-eval: 2 to the power of bits per byte.",
        "word_perplexity": "Exponential of the negative log-likelihood per word of text, as in lm-eval; comparable across tokenizers.",
    },
    "kl": {
        "kl": "Exact KL divergence from the start model (or another one) per token of held-out completions, in nats.",
        "kl_sequence": "Exact KL divergence from the start model (or another one) per held-out completion, in nats.",
    },
    "generate": {
        "quality": "Mean of the checker's number over generated completions.",
        "win_rate": "Share of prompts whose completion has a higher quality than the start model's; ties count half.",
        "tokens": "Mean number of tokens of a generated completion.",
        "ended": "Share of completions that ended with an end token within the maximum length.",
        "repetition": "Mean share of a completion's 3-grams that occurred in it before.",
        "distinct_1": "Distinct tokens of all completions over all their tokens.",
        "distinct_2": "Distinct pairs of adjacent tokens of all completions over all such pairs.",
        "self_bleu": "Mean BLEU of each sample of a prompt with its other samples as references: 0 is diverse, 1 all the same.",
        "samples_distinct_1": "Mean over prompts of the distinct tokens of a prompt's samples over all their tokens.",
        "samples_distinct_2": "Mean over prompts of the distinct pairs of adjacent tokens of a prompt's samples over all such pairs.",
        "samples_different": "Mean over prompts of the share of a prompt's samples that are different texts.",
        "pass@*": "Probability that one of k samples of a prompt passes the checker (unbiased estimate, mean over prompts).",
        "pass@*/*": "Probability that one of k samples of a prompt passes by a reward (unbiased estimate, mean over prompts).",
        "reward/*": "Mean of a reward over generated completions that it judges.",
    },
    "judge": {
        "win_rate": "Mean credit of the answers over the baseline's by the judge, over both orders: 1 for a win, a half for a tie.",
        "win_rate/length_controlled": "Win rate that the judge would give to answers as long as the baseline's (logistic regression).",
        "win_rate/corrected": "Win rate corrected for the judge's errors on pairs with a known preference, which are in the interval.",
        "win_rate/rated": "Win rate by the human ratings of some answers, with the judge's verdicts on the others to sharpen it.",
        "ties": "Share of prompts on which the judge prefers neither answer over both orders.",
        "identical": "Share of prompts on which both answers are the same text.",
        "position_bias": "Share of different answers whose verdict follows their order.",
        "says_first": "Share of verdicts, over both orders, for the answer that is shown first: a half without bias.",
        "length_difference": "Mean number of characters by which an answer is longer than the baseline's.",
        "agreement": "Share of pairs with a known preference that the judge decides rightly, over both orders.",
        "agreement/*": "Agreement where the better answer is shown first or second, or is the longer or the shorter one.",
    },
    "rewardbench2": {
        "accuracy/*": "Share of rows, or rows of a subset, whose right completion has the highest score, by sum, mean, ref or reward; sharing it with k - 1 others counts 1 / k; in Ties, all right ones beat all wrong ones.",
        "ties/*": "RewardBench 2's score of the subset Ties, 60 % accuracy and 40 % margin, by sum, mean, ref or reward.",
        "score/*": "Mean of the subsets' scores: accuracies, and the score of Ties; RewardBench 2's overall score where all its subsets are there.",
    },
    "refusals": {
        "refused/harmless": "Share of harmless prompts that the model refuses: over-refusal, lower is better.",
        "refused/harmful": "Share of harmful prompts that the model refuses, higher is better.",
        "refused/harmless/*": "Share of the harmless prompts of a type that the model refuses.",
        "refused/harmful/*": "Share of the harmful prompts of a type that the model refuses.",
        "empty": "Share of answers without text, which count as not refused.",
    },
}
"""Suite -> metric -> meaning; ``*`` stands for any ending."""


def meaning(suite: str, metric: str) -> str:
    """Return what a metric means; empty for one of another suite.

    >>> meaning("prefs", "accuracy_sum/category/food")
    'Accuracy by sum on the pairs of a category.'
    """
    known = GLOSSARY.get(suite, {})
    patterns = sorted(known, key=len, reverse=True)
    return known.get(metric) or next((known[name] for name in patterns if fnmatchcase(metric, name)), "")


def page() -> str:
    """Return the glossary as Markdown."""
    lines = [
        "# Metrics",
        "",
        "Generated from the code by `make docs`. How metrics are compared: [evaluation.md](evaluation.md). Metrics of lm-eval's tasks",
        "are those of [lm-eval](https://github.com/EleutherAI/lm-evaluation-harness).",
    ]
    for suite, metrics in GLOSSARY.items():
        lines += ["", f"## `{suite}`", "", "| metric | meaning |", "|---|---|"]
        lines += [f"| `{name}` | {text} |" for name, text in metrics.items()]
    return "\n".join(lines) + "\n"
