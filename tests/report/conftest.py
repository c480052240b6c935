"""Sample studies, each written once."""

from __future__ import annotations

import pytest

from tests.report.studies import Study, build_layouts_study, build_study, hostile
from tuner.report.tables import StudyFiles, read_study
from tuner.report.translations import Language, Words

HOSTILE = "</script><script>window.pwned=1</script><b onmouseover='x'>\"q\" & \x1b[31mred\x1b[0m\nnext{{7*7}}"


@pytest.fixture(scope="session", params=(build_study, build_layouts_study), ids=("one layout", "layouts"))
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of one layout, and one that searched three."""
    made: Study = request.param(tmp_path_factory.mktemp("study"))
    return made


@pytest.fixture(scope="session")
def one_layout(tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    """The study of one layout."""
    return read_study(build_study(tmp_path_factory.mktemp("one")).folder)


@pytest.fixture(scope="session")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    """The study of three layouts."""
    return read_study(build_layouts_study(tmp_path_factory.mktemp("layouts")).folder)


@pytest.fixture(scope="session")
def hostile_study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return hostile(HOSTILE, tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="session")
def files(study: Study) -> StudyFiles:
    return read_study(study.folder)


@pytest.fixture
def words() -> Words:
    return Words(Language.ENGLISH)
