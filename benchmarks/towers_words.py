"""What docs/benchmark.md says beside its tables: how to read them, what a suite is, and verdicts out of the numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from estimates import NORMAL, Estimate
from towers_numbers import ANOMALIES, Runs
from towers_runs import TREES

INTRODUCTION = """\
# Architectures, compared

Every mixing of [docs/models.md](models.md), under one equal budget: the same encoded rows, embedding tables, towers,
optimizer, batch order and seeds; widths are chosen so that the dense parameters (bottom, mixing and heads) of all rows
are within 5 % of each other. At most 100,000 training rows and 3 epochs. The dense learning rate of each row is the one
of 0.0003, 0.001 and 0.003 that validation likes best with one seed; then there are five seeds. Trees are LightGBM on
the same encoded rows ([`recsys baseline`](experiment.md#a-baseline-to-beat)), untuned, one seed. Everything below is
measured on test rows.

- **Δm**: mean over tasks of the gain in AUC above chance, in percent of the reference's AUC minus 0.5; mean over seeds
  with the 95 % interval (Student's t) of how far seeds move it.
- **better : worse**: tasks that are surely better, and surely worse, than single-task models of the same budget: the
  seesaw. Sure is a paired 95 % interval that leaves out 0; it covers rows (DeLong, or by user where that is wider) and
  seeds. Of twenty such comparisons one goes wrong by chance.
- **AUC**: mean over seeds and the 95 % interval of how far seeds move that mean. **Bold** differences are sure.
- **samples/s**: whole training steps a CPU second on one thread, batch 1,024, and as a ratio to Shared-Bottom's in the
  same run. Multiply-adds are of bottom, mixing and heads for one row; trees have neither.

These are small data sets and small models: a row that wins here need not win on a billion impressions, and a
difference that is not sure here is not shown to be none.

This page is generated: `python benchmarks/towers.py --page`.
"""

REPRODUCE = """\
## Reproduce

With the public data sets of [the examples](examples.md) under `RECSYS_DATA`, from the root of the repository; the whole
takes some two and a half hours of one core:

<!-- no-test: takes hours and needs the data sets -->
```sh
python benchmarks/towers.py                                  # everything, on two cores; goes on where it was stopped
python benchmarks/towers.py many_tasks --row ple --again     # one row, and what it is compared with where that is gone
python benchmarks/towers.py --speed                          # the column samples/s
python benchmarks/towers.py --page                           # this page, from the records
```
"""

PAIRS = """\
Each number is an AUC: how well a matrix of (task, behaviour) numbers ranks the pairs in which that behaviour of the
user tells of that task above the others. 1.00 finds every planted pair before any other, 0.50 is chance. What a task
loses without a behaviour is measured on test rows; the others are read off a trained DTRN: how far TIM's scales and
shifts of the pair lie from the behaviour's mean over tasks, the size of the scale that the task's interest passes
through, and TRM's mean weight of the interest.
"""

# A ranking's AUC from which on it is said to find the pairs.
_FOUND = 0.8

RANKINGS = {
    "auc_lost": "AUC lost without the behaviour",
    "modulation": "TIM, distance from the other tasks",
    "passed": "TIM, scale passed through",
    "weight": "TRM, weight of the interest",
}

PAPERS = """\
The protocol of the MMoE, PLE and AdaTT papers: the whole training file, income above 50,000 dollars and never married,
education and marital status not among the inputs, the test file halved into validation and test. Published numbers are
of PLE's paper (Tang et al., RecSys 2020, Table 5). What was tried before these rows is told in
`benchmarks/suites/census_papers/experiment.toml`.
"""

# AUCs of Tang et al., RecSys 2020, Table 5.
PUBLISHED = {
    "single-task, published": {"income": 0.9445, "never_married": 0.9923},
    "MMoE, published": {"income": 0.9393, "never_married": 0.9928},
    "PLE, published": {"income": 0.9522, "never_married": 0.9945},
}
_AIM = PUBLISHED["PLE, published"]


@dataclass(frozen=True)
class About:
    """What a suite is."""

    title: str
    text: str


ABOUT = {
    "census": About(
        "Census-income: three labels of one person",
        "Income above 50,000 dollars, never married, a degree; categories and amounts, no ids and no history.\n",
    ),
    "kuairand": About(
        "KuaiRand: four responses to a video",
        "Click, long view, entering the author's profile, comment; several histories a user. A subset of liked and "
        "hated videos.\n",
    ),
    "movielens_1m": About(
        "MovieLens 1M: like, and then love",
        "A funnel of four and of five stars, with histories of liked and disliked movies; AITM stands beside the "
        "funnel's product of probabilities.\n",
    ),
    "retailrocket": About(
        "RetailRocket: cart, and then purchase", "A funnel from two ids and two counts of views.\n"
    ),
    "many_tasks": About(
        "Twenty simulated tasks of a hundredfold spread in density",
        "Four categories of five tasks, alike within and hardly across; positives from 30 % down to 0.3 %. The case "
        "that HoME is made for. The true probabilities are known.\n",
    ),
    "planted_behaviours": About(
        "Simulated tasks, each told by some behaviours only",
        "Four histories a user, and for every task it is known which of them tell about it. The case that DTRN is made "
        "for. The true probabilities are known.\n",
    ),
    "census_papers": About("Census-income by the papers' protocol", ""),
}


def verdicts(runs: dict[str, Runs]) -> str:
    """What the numbers say of the best row, of Shared-Bottom and of trees, whoever wins."""
    models = {name: item for name, item in runs.items() if name != TREES}
    lines = [_best(models), _against_shared_bottom(models), _against_trees(models)]
    return "".join(f"- {line}\n" for line in lines if line)


def anomaly_verdict(runs: dict[str, Runs]) -> str:
    """Whether MMoE and CGC show the anomalies, and whether HoME does."""
    shown = [name for name in ("mmoe", "cgc", "home") if name in runs]
    parts = []
    for name in shown:
        count = len(runs[name].records)
        hits = {title: round(count * runs[name].anomaly_share(title)) for title in ANOMALIES}
        found = [f"{title} in {hit} of {count}" for title, hit in hits.items() if hit]
        parts.append(f"{name}: {', '.join(found) or f'none in {count} runs'}")
    return "- " + "; ".join(parts) + ".\n"


def pair_verdict(rankings: Sequence[Mapping[str, float]]) -> str:
    """Whether TIM's own numbers find the planted pairs, in any row; 0.8 is taken as finding them."""
    best = {
        title: max((item[title] for item in rankings if title in item), default=None)
        for title in ("modulation", "passed", "auc_lost")
    }
    told = [value for title in ("modulation", "passed") if (value := best[title]) is not None]
    if not told or best["auc_lost"] is None:
        return ""
    verb = "find" if max(told) >= _FOUND else "do not find"
    whole = "finds" if best["auc_lost"] >= _FOUND else "does not find"
    return (
        f"- TIM's own numbers {verb} the planted pairs (at best {max(told):.2f}); what a model loses without a "
        f"behaviour {whole} them (at best {best['auc_lost']:.2f}).\n"
    )


def published_verdict(runs: dict[str, Runs]) -> str:
    """How far the best row, PLE and single-task models are from what PLE's paper has for PLE, task by task."""
    models = [item for name, item in runs.items() if name != TREES]
    lines = []
    for task, aim in _AIM.items():
        best = max(models, key=lambda item: item.metric(task, "auc").mean)
        others = [item for item in models if item.row in ("ple", "single_task")]
        shown = [best, *(item for item in others if item is not best)]
        told = [_beside(item, task, aim) for item in shown]
        lines.append(
            f"- {task}, less the published {aim:.4f} (interval over test rows and seeds): "
            f"{'; '.join(told)}.\n"
        )
    return "".join(lines)


def _beside(item: Runs, task: str, aim: float) -> str:
    found = item.metric(task, "auc")
    of_rows = NORMAL * (item.mean([task], "auc_standard_error") or math.nan)
    reach = math.hypot(of_rows, found.reach)
    return f"{item.row} {Estimate(found.mean - aim, reach).as_difference()}"


def _best(models: dict[str, Runs]) -> str:
    gains = {name: gain for name, item in models.items() if (gain := item.gain("single_task"))}
    if not gains:
        return ""
    best = max(gains, key=lambda name: gains[name].mean)
    if gains[best].mean <= 0:
        return "No row beats single-task models of the same budget in the mean over tasks."
    spread = "" if gains[best].is_sure else ", which the choice of seeds alone may explain"
    return f"Largest gain over single-task: {best}, Δm {gains[best].mean:+.2f} %{spread}."


def _against_shared_bottom(models: dict[str, Runs]) -> str:
    others = {name: item for name, item in models.items() if name != "shared_bottom"}
    if "shared_bottom" not in models or not others:
        return ""
    better = [
        name
        for name, item in others.items()
        if item.surely("shared_bottom", sign=1) and not item.surely("shared_bottom", sign=-1)
    ]
    worse = [
        name
        for name, item in others.items()
        if item.surely("shared_bottom", sign=-1) and not item.surely("shared_bottom", sign=1)
    ]
    return (
        f"Shared-Bottom is surely beaten on some task, and surely better on none, by {_listed(better)}; it is surely "
        f"better on some task, and beaten on none, than {_listed(worse)}; neither or both for the rest."
    )


def _against_trees(models: dict[str, Runs]) -> str:
    some = next(iter(models.values()))
    won: dict[str, list[str]] = {"ours": [], "trees": [], "tie": []}
    for task in some.tasks:
        best = max(models.values(), key=lambda item: item.metric(task, "auc").mean)
        difference = best.minus(TREES, task)
        if difference is None:
            return ""
        sure = "ours" if difference.mean > 0 else "trees"
        won[sure if difference.is_sure else "tie"].append(task)
    shown = {
        who: "every task" if len(tasks) == len(some.tasks) else _listed(tasks)
        for who, tasks in won.items()
    }
    return f"Trees beat the best row on {shown['trees']}, lose to it on {shown['ours']}, and tie on {shown['tie']}."


def _listed(names: list[str]) -> str:
    return ", ".join(names) if names else "none"
