"""Layouts on the page: what each gave, what became of it, and the commands of all servers."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.report.test_page import Page
from tuner.layout import FLAGS, Layout
from tuner.report.layouts import LayoutState, door_rows, door_words, dropped_words, layout_rows
from tuner.report.page import report
from tuner.report.summary import FlagRow, launch_rows
from tuner.report.summary import side as side_of
from tuner.report.tables import FAILED, StudyFiles
from tuner.report.translations import Language, Words
from tuner.study.result import LayoutStanding, WhyDropped


def test_every_layout_stands_with_its_figures_and_what_became_of_it(layouts: StudyFiles) -> None:
    rows = {str(row.layout): row for row in layout_rows(layouts, Words(Language.ENGLISH))}
    states = {name: row.state for name, row in rows.items()}
    assert states == {
        "4x1": LayoutState.WINNER,
        "2x2": LayoutState.SEARCHED,
        "1x4": LayoutState.DROPPED,
        "1x3": LayoutState.RULED_OUT,
    }
    searched_records = [r for r in layouts.records if r.role.searches]
    assert sum(row.starts for row in rows.values()) == len(searched_records)
    assert sum(row.refused for row in rows.values()) == sum(r.outcome in FAILED for r in searched_records)
    assert rows["1x4"].is_default and rows["1x4"].default_qps == layouts.records[0].qps
    assert rows["4x1"].best_qps == max(r.qps for r in searched_records if r.qps is not None)
    page = Page(report(layouts))
    assert {"layouts", "layout-rows"} <= {attributes.get("id") for _, attributes in page.tags}
    assert "ruled out before any start: 64 attention heads do not divide by 3" in page.text
    assert f"is out of reach of the {rows['4x1'].best_qps:.1f} req/s of 4x1 (trials 3, 4)" in page.text
    assert "no P2P between GPU 1 and GPU 2" in page.text
    assert f"已无法追上 4x1 的 {rows['4x1'].best_qps:.1f} req/s" in Page(report(layouts, language="zh")).text


@pytest.mark.parametrize("why", WhyDropped)
def test_every_reason_to_drop_a_layout_is_said_in_both_languages(why: WhyDropped) -> None:
    dropped = LayoutStanding(Layout(1, 4), best_qps=24.2, dropped_by=(3, 7), why=why, leader=Layout(4), leader_qps=41.8)
    for language in Language:
        said = dropped_words(dropped, Words(language))
        assert "4x1" in said and "3, 7" in said
        assert language is Language.ENGLISH or not re.findall(r"[A-Za-z]{2,}", said.replace("req/s", ""))


def test_a_study_of_one_layout_says_what_its_figures_are(one_layout: StudyFiles) -> None:
    def shown(layout: Layout) -> str:
        placed = (replace(one_layout.plan.layouts[0], layout=layout),)
        return Page(report(replace(one_layout, plan=replace(one_layout.plan, layouts=placed)))).text

    assert "Layout 2x1: 2 servers, TP 1 each. All QPS are the whole machine's." in shown(Layout(2, 1))
    assert "Layouts" not in shown(Layout(1, 1))
    assert "doors" not in {attributes.get("id") for _, attributes in Page(report(one_layout)).tags}


def test_every_server_of_the_winner_has_its_command(layouts: StudyFiles) -> None:
    page = Page(report(layouts))
    shown = [attributes["id"] for tag, attributes in page.tags if tag == "pre"]
    assert shown == ["launch", "launch-2", "launch-3", "launch-4", "repeat"]
    for gpu, port in zip(range(4), range(8001, 8005), strict=True):
        assert re.search(rf"CUDA_VISIBLE_DEVICES={gpu} [^\n]+ --port {port}(?!\d)", page.text)
    assert "with nginx in front of them on port 8000" in page.text


def test_the_launches_of_layouts_differ_in_layout_and_door_and_not_in_their_flags(layouts: StudyFiles) -> None:
    winner, default = layouts.quoted(layouts.winner), layouts.quoted(layouts.default)
    assert winner is not None and default is not None
    rows = launch_rows((layouts, winner), (layouts, default), Words(Language.ENGLISH))
    assert rows[:2] == [FlagRow("layout", "4x1", "1x4"), FlagRow("door", "nginx", "the server itself")]
    assert not {row.flag for row in rows} & set(FLAGS)


def test_cost_counts_all_gpus_of_the_layout(layouts: StudyFiles) -> None:
    assert [side.gpus for figures in (layouts.winner, layouts.default) if (side := side_of(layouts, figures))] == [4, 4]
    searched_only = next(r for r in layouts.records if r.replicas == 4 and r.qps is not None)
    figures = replace(layouts.winner, candidate=searched_only.candidate, trials=(searched_only.trial,))  # type: ignore[type-var]
    side = side_of(layouts, figures)
    assert side is not None and side.gpus == 4 and len(searched_only.start.gpus) == 1


def test_the_door_stands_with_what_it_costs_in_both_languages(layouts: StudyFiles) -> None:
    (row,) = door_rows(layouts, Words(Language.ENGLISH))
    assert layouts.result is not None and layouts.winner is not None
    assert (row.door, row.rate, row.is_quoted) == ("nginx", f"{layouts.winner.qps:.1f} req/s", True)
    for language, says in ((Language.ENGLISH, "Behind nginx all servers"), (Language.CHINESE, "经由 nginx，")):
        assert says in Page(report(layouts, language=language)).text
    (nginx,) = layouts.result.doors
    dear = replace(layouts, result=replace(layouts.result, doors=(replace(nginx, cost=0.07),)))
    assert "7 %" in door_words(dear, Words(Language.ENGLISH))
