"""Five hundred corpora of good and broken parts: every document is kept or counted, plainly and by Ray; no traceback.

`make test` has a sample of ten; `make soak` all of them.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from echo_lm.data_prep.config import DatasetConfig
from echo_lm.data_prep.formats.records import Fault
from echo_lm.data_prep.loading.dataset import Dataset
from echo_lm.data_prep.loading.verify import verify
from echo_lm.data_prep.preparing.documents import normalise
from echo_lm.models.common.errors import UserError
from echo_lm.orchestration.preparation.executors import ray_data_map
from echo_lm.orchestration.preparation.prepare import prepare_dataset
from tests.helpers.corpus import faults_of, texts_of, tree
from tests.helpers.odd_corpora import OddCorpora, OddCorpus, OddFile


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    ray.init("local", num_cpus=2, object_store_memory=80 * 2**20, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def outcome(config: DatasetConfig, root: Path, map_units: Callable) -> Dataset | str:
    """The dataset, or the one line that refuses it."""
    try:
        return Dataset.open(prepare_dataset(config, root, map_units), verify=True)
    except UserError as error:
        return str(error).replace(str(root), "ROOT")


def check(corpus: OddCorpus, dataset: Dataset) -> None:
    """Documents in are documents kept and documents left out, by source and reason."""
    verify(dataset.folder)
    faults = faults_of(dataset)
    kept = texts_of(dataset)
    assert len(set(kept)) == len(kept)
    for record in dataset.manifest.sources:
        files = corpus.files[record.name]
        own_faults = [fault for fault in faults if fault.source == record.name]
        check_faults(files, own_faults)
        left_out = record.quarantined + record.filtered + record.duplicates + record.near_duplicates
        left_out += record.overlapping + record.beyond_limit
        assert record.records == record.documents + left_out
        assert (record.quarantined, record.filtered) == (len(own_faults), sum(record.filtered_by.values()))
        whole = [file for file in files if not file.is_damaged]
        filtered = sum(file.filtered for file in whole)
        assert filtered <= record.filtered <= filtered + sum(file.filtered for file in files if file.is_damaged)
        of_whole = sum(len(file.texts) for file in whole)
        of_all = sum(len(file.texts) for file in files)
        assert of_whole <= record.documents + record.overlapping <= of_all
    everything = {normalise(text) for files in corpus.files.values() for file in files for text in file.texts}
    assert set(kept) <= everything, "nothing was added"
    if all(record.overlapping == 0 for record in dataset.manifest.sources):
        whole = {normalise(t) for fs in corpus.files.values() for file in fs if not file.is_damaged for t in file.texts}
        assert whole <= set(kept), "nothing was lost"


def check_faults(files: list[OddFile], faults: list[Fault]) -> None:
    """Each bad record is set aside once under its file; a damaged file is named, with the last good record."""
    by_file = Counter(fault.file for fault in faults)
    for file in files:
        if file.is_damaged:
            reason = [fault.reason for fault in faults if fault.file == file.path][-1]
            # A text that is too long is not read to the place where its file is cut off.
            said = ("rest unknown", "nothing of it was read", "this is a", "longer than")
            assert any(part in reason for part in said), reason
        else:
            assert by_file[file.path] == file.bad, (file.path, [f for f in faults if f.file == file.path])
    assert by_file.keys() <= {file.path for file in files}


def run(seeds: range, tmp_path: Path) -> None:
    prepared = 0
    for seed in seeds:
        corpus = OddCorpora(tmp_path / f"{seed}", seed).make()
        plain = outcome(corpus.config, tmp_path / f"{seed}/plain", map)
        by_ray = outcome(corpus.config, tmp_path / f"{seed}/ray", ray_data_map)
        if isinstance(plain, str):
            assert plain == by_ray
            assert "\n" not in plain
            continue
        assert isinstance(by_ray, Dataset), by_ray
        assert tree(plain.folder) == tree(by_ray.folder)
        try:
            check(corpus, plain)
        except AssertionError as error:
            raise AssertionError(f"corpus {seed}: {error}") from error
        prepared += 1
    assert prepared > len(seeds) // 2


@pytest.mark.usefixtures("cluster")
def test_a_sample_of_odd_corpora(tmp_path: Path) -> None:
    run(range(10), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("part", range(10))
def test_odd_corpora(tmp_path: Path, part: int) -> None:
    run(range(10 + part * 50, 60 + part * 50), tmp_path)
