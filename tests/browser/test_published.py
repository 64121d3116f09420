"""What is published, opened in a real optuna-dashboard, in a real browser."""

from __future__ import annotations

import pytest

import optuna_aznas as az
from tests import studies

pytestmark = pytest.mark.browser

#: What plotly has drawn of a figure, counted in its part of the page.
DRAWN = """
(id) => {
  const figure = document.getElementById(`user-defined-plot:${id}`);
  if (!figure || !figure._fullLayout) return null;
  return {
    title: figure.querySelector(".gtitle")?.textContent ?? "",
    points: figure.querySelectorAll(".scatterlayer .point").length,
    lines: figure.querySelectorAll(".scatterlayer .js-line").length,
    bars: figure.querySelectorAll(".barlayer .point").length,
    axes: figure.querySelectorAll(".parcoords .axis").length,
    shapes: figure.querySelectorAll(".shapelayer path").length,
    without_webgl: figure.querySelectorAll(".no-webgl").length,
  };
}
"""

CANVAS_IS_PAINTED = """
(id) => [...document.getElementById(`user-defined-plot:${id}`).querySelectorAll("canvas")].some((canvas) => {
  const copy = document.createElement("canvas");
  [copy.width, copy.height] = [canvas.width, canvas.height];
  const context = copy.getContext("2d");
  context.drawImage(canvas, 0, 0);
  return context.getImageData(0, 0, copy.width, copy.height).data.some((value) => value > 0);
})
"""


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def storage(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/nas.db"
    return request.getfixturevalue("postgres_storage")


def drawn(page, name):
    page.wait_for_function(f"(id) => ({DRAWN})(id) !== null", arg=f"aznas-{name}", timeout=300_000)
    return page.evaluate(DRAWN, f"aznas-{name}")


def open_page(page, address):
    page.goto(address)
    page.wait_for_load_state("networkidle")
    assert page.errors == [], address


def test_a_published_search(page, dashboard, storage):
    search = studies.four_objectives(storage)
    trained = studies.trained(storage)
    for study in (search, trained):
        published = az.dashboard.publish(study, n_best=3)
        assert az.dashboard.publish(study, n_best=3) == published
    address = f"{dashboard(storage)}/dashboard"
    numbers = {study.study_name: study._study_id for study in (search, trained)}

    open_page(page, address)
    page.get_by_text(studies.NASTY_NAME).first.wait_for()  # the name as it stands, and no picture of it
    for part in ("", "/analytics", "/trials", "/note"):
        open_page(page, f"{address}/studies/{numbers[studies.NASTY_NAME]}{part}")
        page.get_by_text(studies.NASTY_NAME).first.wait_for()
        assert page.locator("img[src='x']").count() == 0

    # Every figure is drawn, and there once.
    open_page(page, f"{address}/studies/{numbers[studies.NASTY_NAME]}")
    history, pairs, ranks, cost = (drawn(page, name) for name in ("history", "pairs", "ranks", "complexity"))
    assert page.locator("[id^='user-defined-plot:']").count() == 4
    assert history["points"] == 48 + 1  # the star at the best
    assert history["lines"] == 1
    assert "6 failed, 6 pruned, 1 running" in history["title"].replace("6 pruned, 6 failed", "6 failed, 6 pruned")
    assert pairs["points"] == 6 * 48
    assert ranks["axes"] == 5
    assert ranks["without_webgl"] == 0
    page.wait_for_function(CANVAS_IS_PAINTED, arg="aznas-ranks", timeout=300_000)
    assert cost["points"] == 48
    open_page(page, f"{address}/studies/{numbers['trained']}")
    assert drawn(page, "trained")["points"] > 30
    assert drawn(page, "importance")["bars"] == 2
    assert page.locator("[id^='user-defined-plot:']").count() == 5

    # Notes are shown as what they are: tables and lists, and a user's text as it stands.
    best = az.leaderboard(search, 3)
    open_page(page, f"{address}/studies/{numbers[studies.NASTY_NAME]}/note")
    page.get_by_role("heading", name=f"{studies.NASTY_NAME}: the best by rank score").wait_for()
    rows = page.locator("table tbody tr")
    assert rows.count() == 3
    for row, entry in zip(rows.all(), best, strict=True):
        cells = row.locator("td").all_inner_texts()
        assert [cells[0], cells[1].split()[0]] == [str(entry.place), str(entry.number)]
        assert cells[-1] == ", ".join(f"{name}={value}" for name, value in best.differing_params(entry).items())
    assert "optuna-aznas" not in page.locator("main").last.inner_text()  # our marks are not seen
    open_page(page, f"{address}/studies/{numbers[studies.NASTY_NAME]}/trials?numbers={best[0].number}")
    page.get_by_role("heading", name="Place 1 by rank score").wait_for()
    page.get_by_text("Pruned").first.wait_for()
    page.get_by_text("Fail").first.wait_for()
    assert page.errors == []
