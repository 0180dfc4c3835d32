"""The text of experiment.toml."""

from typing import Any

from pipelines.init import toml
from pipelines.init.decided import Decided


def experiment_text(decided: Decided) -> str:
    """Which model, and how it is trained."""
    training = decided.training
    sections = [
        toml.comment(
            f"A first model for about {decided.rows} rows. Written by `recsys init`; docs/experiment.md explains "
            "every key. Any value can be changed for one run: recsys train experiment.toml RUN --set train.epochs=1"
        ),
        ['schema_file = "schema.toml"'],
        _data(decided),
        [
            *toml.comment(_why_this_size(decided)),
            "[model]",
            *toml.aligned(
                [
                    ("bottom", {"kind": "flat"}, ""),
                    ("mixing", training.mixing, ""),
                    ("heads", training.heads, ""),
                ]
            ),
        ],
        [
            "[optimizer]",
            *toml.aligned([(name, item, "") for name, item in training.optimizer.items()]),
        ],
        [
            "[train]",
            *toml.aligned(
                [(name, item, _train_notes(name)) for name, item in training.train.items()]
            ),
        ],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _data(decided: Decided) -> list[str]:
    split = decided.split
    entries: list[tuple[str, Any, str]] = [
        ("directory", "data", "where `recsys build` publishes"),
        ("encoder", "encoder", "where `recsys fit` does"),
    ]
    if split.days:
        named = zip(("train", "validation", "test"), split.days, strict=True)
        entries += [(name, {"from": first, "to": last}, "") for name, (first, last) in named]
    else:
        validation = "validation" if "validation" in split.names else "test"
        entries += [
            ("train", ["train"], ""),
            ("validation", [validation], ""),
            ("test", ["test"], ""),
        ]
    entries.append(("batch_size", decided.training.batch_size, ""))
    return ["[data]", *toml.aligned(entries)]


def _why_this_size(decided: Decided) -> str:
    tasks = len(decided.labels)
    mixing = (
        "one network, for there is one task"
        if tasks == 1
        else f"experts that {tasks} tasks share, each in its own mixture"
    )
    return (
        f"Sized for the number of rows: {mixing}. `recsys architectures` lists what else there is."
    )


def _train_notes(name: str) -> str:
    return {
        "epochs": "at most; each is followed by a look at the validation rows",
        "patience": "stops after so many looks without improvement; the best checkpoint is kept",
    }.get(name, "")
