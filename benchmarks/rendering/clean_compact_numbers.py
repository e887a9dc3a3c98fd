"""Give the numbers of Clean & Compact's public slides, in percent, to stand beside ours.

Table 4 is text out of a picture with its columns mixed up; the order here is the only one that
gives every average that the slides print (GTSRB's BadNets rows and Input-Aware row stand in the
slides as they do here). Of Table 2 the text gives one number: the accuracy of both rivals at 2x.
"""

from __future__ import annotations

ACC_AND_ASR = tuple[float, float]

# data set -> attack -> (no defence, CLP, Clean & Compact)
TABLE_4: dict[str, dict[str, tuple[ACC_AND_ASR, ACC_AND_ASR, ACC_AND_ASR]]] = {
    "gtsrb": {
        "badnets": ((97.17, 97.20), (98.70, 8.52), (97.70, 2.96)),
        "badnets-a2a": ((98.97, 95.40), (97.65, 0.48), (96.32, 5.76)),
        "input-aware": ((98.99, 98.81), (98.85, 7.72), (98.94, 0.00)),
        "input-aware-a2a": ((98.45, 96.97), (95.87, 15.61), (98.59, 0.14)),
    },
    "cifar100": {
        "badnets": ((74.35, 96.71), (44.78, 0.81), (70.27, 1.83)),
        "badnets-a2a": ((74.15, 69.40), (53.20, 0.88), (73.28, 0.95)),
        "input-aware": ((65.49, 93.92), (53.92, 6.59), (60.58, 6.19)),
        "input-aware-a2a": ((66.19, 57.13), (53.57, 0.87), (64.12, 5.22)),
    },
}
TABLE_4_AVERAGES: dict[str, tuple[ACC_AND_ASR, ACC_AND_ASR, ACC_AND_ASR]] = {
    "gtsrb": ((98.40, 97.10), (97.77, 8.08), (97.89, 2.22)),
    "cifar100": ((70.05, 79.29), (51.37, 2.29), (67.06, 3.55)),
}
TABLE_4_COLUMNS = {"none": 0, "clp": 1, "deck": 2}  # our names for its columns

TABLE_2_ACC = {"anp+pruning-2x": 10.0, "clp+pruning-2x": 10.0}
