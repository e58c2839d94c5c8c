"""Captions of a study's figures, by file name, in the order of the report."""

CAPTIONS = {
    "loss_against_compute": "Every cell; lines: the lowest loss that each fitted law gives over its sizes.",
    "arms": "Loss against parameters at each budget.",
    "isoflop": "Loss against size at equal training cost; stars: the best size.",
    "residuals": "What the laws leave unexplained.",
    "extrapolation": "Sizes that no fit saw.",
    "recall_against_tokens": "Recall against training, a line for each size.",
    "recall_against_state": "Recall against the bytes that one sequence carries while decoding; larger marks: larger budgets.",
    "recall_against_parameters": "Recall against parameters; larger marks: larger budgets.",
    "throughput": "Median speed of each cell while others ran beside it.",
}
