"""The fixed words of docs/speed.md."""

from collections.abc import Mapping
from typing import Any

# How many times as fast as either library we want to be, in float32 and in bf16.
AIMS = {"small": (2.5, 4.0), "large": (15.0, 25.0)}

INTRODUCTION = """\
# Speed, measured

From encoded Parquet on disk to updated weights, everything included: reading, collating, lookup, products, updates.
The job: 26 categorical fields with tables of their own, width 16, Zipf-distributed ids, batches of 8,192, MMoE with 8
experts [256, 128], towers [64], two tasks.

- **torch-rechub** 0.9.0 (`MTLTrainer`) and **DeepCTR-Torch** 0.3.0 (`MMOE.fit`) as they come: float32, dense Adam over
  whole tables. torch-rechub's `fit` is measured without evaluating and saving. It normalises every layer over the
  batch, which no setting switches off: **torch-rechub, our layers** is without that.
- **TorchRec loop**: the same layers by hand on `FusedEmbeddingBagCollection` with row-wise Adagrad, experts of
  `nn.Linear` in a loop, fused AdamW, autocast; rows are read whole and cut up with NumPy.
- **recsys**: `recsys.training` as `recsys train` runs it, with its checks, clipping and shuffled windows.
- **ceiling**: a step that were nothing but its products, at the rate of this machine's best square `torch.mm`
  (`benchmarks/ceiling.py`), measured in the same rounds.

All run the same torch on one thread. **samples/s** are per CPU second of the process, feed threads included; sides take
turns, each in a process of its own, and figures are medians over rounds. Ratios are medians of the ratios within a
round. The cores are shared with other work, so figures of one table compare, and those of different tables hardly.

Aims are set as multiples of the libraries. Where products alone, at the ceiling, would miss an aim, nothing that
multiplies at that rate reaches it with these layers in this precision: a library that spends its time in products
leaves that much and no more.

This page is generated: `python benchmarks/speed_page.py`.
"""

# The folder of another processor's records.
ANOTHER = "avx2"
ON_ANOTHER = """\
## On a processor without bf16

The same in float32 on an AMD EPYC of an older kind (Zen 3: AVX2, no AVX-512), where a product in bf16 is emulated and
takes 8 times as long as in float32: `peers.py --precision float32 --records benchmarks/records/speed/avx2`.
"""

REPRODUCE = """\
## Reproduce

From the root of the repository; a call of `peers.py` goes on where another stopped:

<!-- no-test: takes an hour, and installs the peers -->
```sh
python benchmarks/peers.py --work /tmp/speed
python benchmarks/speed_parts.py --work /tmp/speed
python benchmarks/speed_quality.py --work /tmp/speed
python benchmarks/speed_growth.py --work /tmp/speed
python benchmarks/speed_page.py
```
"""


def heading(case: str, record: Mapping[str, Any], *, level: str) -> str:
    """Of a case's table."""
    rows, rounds = record["job"]["table_rows"], len(record["rounds"])
    return (
        f"{level} {case.capitalize()} tables: 26 x {rows:,} rows\n\nOne thread; rounds: {rounds}.\n"
    )
