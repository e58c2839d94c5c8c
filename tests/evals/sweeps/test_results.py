"""What is taken from the results of a recall sweep."""

from echo_lm.evals.sweeps.results import best_of_cells


def test_the_best_of_a_cell_is_taken_seed_by_seed_and_of_equals_the_first(monkeypatch):

    def result(seed, length, rate, correct):
        return {
            "seed": seed,
            "learning_rate": rate,
            "rows": [{"label": "mqar-2", "length": length, "correct": correct}],
        }

    shown = [result(0, 14, 0.1, 7), result(1, 14, 0.2, 8), result(0, 70, 0.1, 5)]
    others = [result(1, 14, 0.1, 6), result(0, 14, 0.2, 6), result(0, 70, 0.2, 5)]
    assert best_of_cells([shown[0], others[0], shown[2], others[1], shown[1], others[2]]) == [
        shown[0],
        shown[1],
        shown[2],
    ]
