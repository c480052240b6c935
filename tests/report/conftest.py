"""Sample studies, each written once."""

from __future__ import annotations

import pytest

from tests.report.studies import Study, build_study, hostile
from tuner.report.tables import StudyFiles, read_study
from tuner.report.translations import Language, Words

HOSTILE = "</script><script>window.pwned=1</script><b onmouseover='x'>\"q\" & \x1b[31mred\x1b[0m\nnext{{7*7}}"


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return build_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def hostile_study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return hostile(HOSTILE, tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="session")
def files(study: Study) -> StudyFiles:
    return read_study(study.folder)


@pytest.fixture
def words() -> Words:
    return Words(Language.ENGLISH)
