"""Training on a stream of its own."""

import pytest
import torch

from echo_lm.data_prep.recall import RecallVocabulary
from echo_lm.evals.config import RecallTraining
from echo_lm.evals.recall_training import RecallTrainer
from echo_lm.models import build_model, preset

HALF_A_SECOND = 10**9  # cycles


@pytest.mark.gpu
def test_it_waits_for_what_was_queued_before_it(monkeypatch):
    """A GPU that is shared may be late with the step counter, which is made last: a step must not read what lay there before."""
    optimizer = torch.optim.AdamW

    def late(*args, **options):
        used_before = torch.full((1,), 3, device="cuda")
        del used_before
        torch.cuda._sleep(HALF_A_SECOND)
        return optimizer(*args, **options)

    training = RecallTraining(steps=6, lengths=(32,), pairs=(1,), batch_sequences=4)
    losses = []
    for make in (optimizer, late):
        monkeypatch.setattr(torch.optim, "AdamW", make)
        model = build_model(preset("paper-1m-l2"), seed=0, device="cuda")
        trainer = RecallTrainer(model, training, RecallVocabulary(), seed=0, device="cuda")
        trainer.run()
        losses.append(trainer.losses.cpu())
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
