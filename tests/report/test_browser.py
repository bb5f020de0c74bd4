"""The page as a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from avpretrain.report.write import write_report
from tests.support.runs import write_inpainted, write_probe

PROBE_SCRIPT = """
<script>
window.addEventListener("load", () => {
  const table = document.querySelector("table.sortable");
  const order = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
  const column = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent.startsWith("FLOPs a clip"));
  const orders = [];
  for (let i = 0; i < 2; i++) {
    table.tHead.rows[0].cells[column].querySelector("button").click();
    orders.push(order());
  }
  const chart = document.querySelector("svg[data-range]");
  const box = chart.getBoundingClientRect();
  const [clientX, clientY] = [box.x + box.width - 30, box.y + 20];
  chart.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY }));
  const slider = document.querySelector(".sequence input");
  const frames = [...slider.closest(".sequence").querySelectorAll(".frame")];
  const moment = () => frames.filter((frame) => !frame.hidden).map((frame) => frame.dataset.name).join();
  const moments = [moment()];
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  moments.push(moment());
  const image = document.querySelector("#listening img");
  const before = image.getBoundingClientRect().width;
  image.click();
  const drawn = (element) => {
    const { width, height } = element.getBoundingClientRect();
    return width > 100 && height > 50 && (element.tagName !== "IMG" || element.naturalWidth > 0);
  };
  const pictures = [...document.querySelectorAll("figure svg, figure img")].filter((e) => !e.closest("[hidden]"));
  const lines = [...document.querySelectorAll("polyline, rect.bar")];
  const result = {
    errors: window.errors,
    orders,
    readout: chart.parentElement.querySelector("output").textContent,
    moments,
    copy: [...document.querySelectorAll("button.copy")].every((button) => !button.hidden),
    copied: document.querySelector("button.copy").previousElementSibling.textContent,
    sounds: document.querySelectorAll("audio").length,
    zoomed: [before, image.getBoundingClientRect().width, image.naturalWidth],
    figures: document.querySelectorAll("figure").length,
    drawn: pictures.filter(drawn).length,
    coloured: lines.every((line) => {
      const style = getComputedStyle(line);
      return /rgb/.test(line.tagName === "rect" ? style.fill : style.stroke);
    }),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    background: getComputedStyle(document.body).backgroundColor,
  };
  document.body.textContent = "RESULT" + JSON.stringify(result) + "END";
});
</script></body>"""


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def in_browser(page: Path, width: int, dark: bool) -> dict[str, Any]:
    """What a script finds in the page as Chromium shows it."""
    html = page.read_text().replace(
        "<head>", "<head><script>window.errors = []; onerror = (m) => { errors.push(String(m)); };</script>", 1
    )
    probed = page.with_name("probed.html")
    probed.write_text(html.replace("</body>", PROBE_SCRIPT, 1))
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={page.parent / f'browser-{width}-{dark}'}", f"--window-size={width},1200",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--enable-logging=stderr", "--dump-dom",
        probed.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "CONSOLE" not in done.stderr
    found = re.search("RESULT(.*)END", done.stdout)
    assert found, done.stdout[-500:]
    answer: dict[str, Any] = json.loads(found[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    return answer


@pytest.mark.slow
@pytest.mark.skipif(
    CHROMIUM is None,
    reason="needs a browser, which is no Python package: put Chromium or Chrome on PATH (.ci/run installs one)",
)
def test_page_works_in_a_browser(pair: list[Path]) -> None:
    write_probe(pair[0], 0.6, modality="video")
    write_inpainted(pair[0])
    for moment in (10, 20):
        (pair[1] / "reconstructions" / f"{moment:012d}.png").write_bytes(next(pair[1].glob("r*/*.png")).read_bytes())
    page = pair[0].parent / "report.html"
    write_report(pair, page)
    light, dark = in_browser(page, 1280, dark=False), in_browser(page, 390, dark=True)
    for result in (light, dark):
        assert result["errors"] == []
        assert result["figures"] == result["drawn"] > 15
        assert result["coloured"]
        assert result["orders"] == [["diffmavil", "mavil"], ["mavil", "diffmavil"]]
        assert re.search(r"clips seen: mavil [\d.]+ · diffmavil [\d.]+", result["readout"])
        assert result["overflow"] <= 0
        assert result["moments"] == ["after 6,400 clips", "after 10 clips"]
        assert result["copy"] and result["copied"] == "avpretrain train mavil"
        assert result["sounds"] == 2
        shown, full, natural = result["zoomed"]
        assert shown <= full == pytest.approx(natural, abs=2.5)
    assert light["background"] != dark["background"]
