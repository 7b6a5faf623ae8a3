"""The report: the same bytes from the same files, every part there, what is damaged named, no text taken for a page."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from agp.artifacts import write_json
from agp.figures import Entry
from curricula import recipes, runner
from curricula.against import COMPARED
from curricula.report import page, plots
from curricula.report.collect import ABOUT, ENGINE, run_in
from curricula.report.shortfalls import PUBLIC, shortfalls
from curricula.report.write import SECTIONS, written
from scripts.bench import ane
from tests.curricula.run import smoke
from tests.scripts.test_ane import Machine

ENTRIES = [
    Entry("decode.ratio", 0.9, [0.8, 1.0], ">= 1", "agp bench decode", True),
    Entry("train.ratio", 2.0, None, ">= 1", "agp bench train", False),
    Entry("train.seconds", 3.0, None, None, "agp bench train", False),
]
VOID = {"meta", "path", "circle", "use", "br"}
PLANTED = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A whole run as `agp train` leaves it."""
    root = tmp_path_factory.mktemp("runs") / "smoke"
    shutil.copytree(smoke(), root)
    write_json(root / ABOUT, {"recipe": "smoke", "stages": [stage.name for stage in recipes.stages(recipes.smoke())]})
    (root / "export").mkdir()
    write_json(root / ENGINE, measured())
    return root


def measured():
    """As `agp bench ane` leaves it, on a machine that stands in for a Mac."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ane, "BACK", (0, 3, 0.0))
        return ane.measured(Path("heads.mlpackage"), {"one": ["a"], "many": ["b"]}, Machine(), 3)


@pytest.fixture
def made(given, tmp_path):
    return Path(shutil.copytree(given, tmp_path / "smoke"))


@pytest.fixture(scope="module")
def whole(given):
    return written([given], ENTRIES).decode()


class Outline(HTMLParser):
    """Tags as they open and close, ids, links, headings and text."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.ids, self.links, self.levels, self.names = [], [], [], [], []
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        of = dict(attrs)
        self.tags.append((tag, of))
        self.ids += [of["id"]] if "id" in of else []
        self.links += [of["href"]] if "href" in of else []
        self.names += (of.get("aria-labelledby") or "").split()
        self.levels += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def changed(out: Path, **values) -> None:
    runner.write(out, runner.read(out) | values)


def redrawn(out: Path, change) -> None:
    """Its plots.json changed by `change`, as if the stage had written it so."""
    plots = json.loads((out / "plots.json").read_text())
    change(plots)
    (out / "plots.json").write_text(json.dumps(plots))
    changed(out, files=runner.files(out))


def test_the_same_files_give_the_same_bytes_wherever_they_lie(whole, made):
    assert written([made], ENTRIES).decode() == whole


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(whole, given):
    code = """if True:
        import sys
        from pathlib import Path
        from agp.figures import Entry
        from curricula.report.write import written
        entries = [Entry(*of) for of in eval(sys.argv[2])]
        sys.stdout.buffer.write(written([Path(sys.argv[1])], entries))
    """
    for seed in "12":
        env = {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed, "AGP_QUIET": "1", "TZ": f"UTC+{seed}"}
        words = [sys.executable, "-c", code, str(given), repr([tuple(of) for of in ENTRIES])]
        assert subprocess.run(words, env=env, capture_output=True, check=True).stdout.decode() == whole


def test_every_section_is_there_and_says_what_to_look_for(whole):
    for of in SECTIONS:
        part = whole.split(f'id="run1-{of.key}">{of.title}<')[1].partition("</section>")[0]
        assert part.count("Look for:") == 1 and ("<svg" in part or "<table" in part)
    assert "Not on this page" not in whole and "Damaged" not in whole
    plotted = {
        "losses": 14,
        "lens": 1,
        "reliability": 4,
        "coverage": 4,
        "vitality": 4,
        "frontier": 1,
        "times": 2,
        "engine": 2,
    }
    for key, count in plotted.items():
        part = whole.split(f'aria-labelledby="run1-{key}"')[1].partition("</section>")[0]
        assert part.count('role="img"') == count


def test_what_nobody_measured_on_a_mac_is_not_missed_and_what_is_odd_is_named(made):
    write_json(made / ENGINE, {"rows": []})
    assert (
        "On the Neural Engine: what was measured says nothing of &#x27;floor_ms&#x27;" in written([made], []).decode()
    )
    (made / ENGINE).unlink()
    said = written([made], []).decode()
    assert "Neural Engine" not in said and "Not on this page" not in said


def test_the_page_is_sound_and_can_be_read_without_eyes_or_a_mouse(whole):
    of = Outline(whole)
    assert len(of.ids) == len(set(of.ids))
    assert {link[1:] for link in of.links} <= set(of.ids) and all(link[0] == "#" for link in of.links)
    assert set(of.names) <= set(of.ids)
    assert of.levels[0] == 1 and of.levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(of.levels, of.levels[1:], strict=False))
    assert {attrs["scope"] for tag, attrs in of.tags if tag == "th"} == {"row", "col"}
    assert all("aria-hidden" in attrs or attrs["role"] == "img" for tag, attrs in of.tags if tag == "svg")
    assert all(attrs["tabindex"] == "0" for _, attrs in of.tags if attrs.get("class") == "wide")


def test_nothing_is_fetched_and_the_page_is_small(whole):
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in Outline(whole).tags}
    assert "http" not in whole.replace("http://www.w3.org", "") and "url(" not in whole.replace("url(#", "")
    assert len(whole) < 1_000_000


def test_plots_take_the_colours_of_the_page(whole):
    drawn = "".join(re.findall(r"<svg.*?</svg>", whole, re.DOTALL))
    named = set(re.findall(r"var\((--[a-z0-9]+)\)", whole))
    style = page.STYLE.read_text()
    light, dark = style.partition("@media (prefers-color-scheme: dark)")[::2]
    assert {f"--{name}" for name in plots.VARIABLES.values()} <= named
    assert all(f"{name}: " in light and f"{name}: " in dark for name in named - {"--share"})
    assert not re.search(r"(stroke|fill): #", drawn)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


def test_text_and_lines_stand_out_from_light_and_dark_paper():
    light, dark = page.STYLE.read_text().partition("@media (prefers-color-scheme: dark)")[::2]
    for part in (light, dark):
        colour = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", part))
        for name in colour.keys() - {"paper", "raised", "soft"}:
            bright, dull = sorted((luminance(colour[name]), luminance(colour["paper"])), reverse=True)
            assert (bright + 0.05) / (dull + 0.05) >= 4.5, name


def test_text_from_files_is_shown_and_never_run(made):
    def planted(plots):
        plots["weights"] = {tap: {PLANTED: shares["code"]} for tap, shares in plots["weights"].items()}

    redrawn(made / "depth", planted)
    redrawn(made / "semantic", lambda plots: plots["concepts"][0].update(name=PLANTED))
    changed(made / "domain", gate={"loss_drop": ">= 9"}, past_gate={"why": PLANTED, "closed": []})
    (made / "recipe.json").write_text(json.dumps(json.loads((made / "recipe.json").read_text()) | {"recipe": PLANTED}))
    root = made.rename(made.parent / "<i>&\"'")
    found = written([root], [Entry("<b>.x", 1.0, None, ">= 2", '<a href="x">', False)]).decode()
    assert PLANTED not in found and found.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;") >= 8
    assert "<i>" not in found and "Run &lt;i&gt;&amp;&quot;&#x27;" in found
    assert "<b>" not in found and "&lt;a href=&quot;x&quot;&gt;" in found
    assert "script" not in {tag for tag, _ in Outline(found).tags}


def test_a_name_that_is_no_text_does_no_harm(made):
    redrawn(made / "semantic", lambda plots: plots["concepts"][0].update(name="\ud800"))
    assert b"<td>primitive</td>" in written([made], [])


def test_what_is_not_there_yet_is_left_out_and_named(made):
    (made / "depth/manifest.json").unlink()
    shutil.rmtree(made / "transfer")
    found = written([made], []).decode()
    assert "<li>Depth mixing: depth is begun.</li>" in found
    assert "<li>Bytes against agreement: transfer is not begun.</li>" in found
    assert 'id="run1-mixing"' not in found and 'id="run1-frontier"' not in found
    assert ">lens</li>" in found and "mended state</" not in found
    assert ">depth/module-4<" in found  # how it learned so far
    assert "6 of 8 stages are whole" in found


def test_a_damaged_manifest_is_named_and_the_rest_goes_on(made, given):
    path = made / "trajectory/manifest.json"
    path.write_text(path.read_text().replace("0.1.0", "9.9.9"))
    (made / "semantic/manifest.json").write_text("{")
    found = written([made, given], []).decode()
    first, second = found.split('id="run2"')
    assert "trajectory/manifest.json was changed after it was written" in first
    assert "semantic/manifest.json is no manifest that can be read" in first
    assert "<li>Vitality: trajectory is damaged.</li>" in first and "<li>Concepts: semantic is damaged.</li>" in first
    assert 'id="run1-thresholds"' in first and 'id="run1-mixing"' in first
    assert "Damaged" not in second and 'id="run2-vitality"' in found


def test_plots_that_were_changed_are_not_drawn(made):
    path = made / "transfer/plots.json"
    path.write_text(path.read_text().replace("384.25", "384.52"))
    found = written([made], []).decode()
    assert "transfer: plots.json has other bytes than were written" in found and 'id="run1-frontier"' not in found


def test_half_a_line_and_a_recipe_that_cannot_be_read_are_named(made):
    with (made / "domain/metrics.jsonl").open("a") as lines:
        lines.write('{"step": 3, "lo')
    (made / "recipe.json").write_text("[")
    found = written([made], []).decode()
    assert "domain/metrics.jsonl: line 4 cannot be read" in found and "smoke/recipe.json cannot be read" in found
    assert "8 of 8 stages are whole" in found and ">domain<" in found


def test_metrics_of_another_make_are_said_to_be_of_it(made):
    metrics = runner.read(made / "calibrate")["metrics"]
    del metrics["decisions"]
    changed(made / "calibrate", metrics=metrics)
    found = written([made], []).decode()
    assert "Thresholds by risk: calibrate says nothing of &#x27;decisions&#x27;" in found
    assert 'id="run1-times"' in found


def test_what_falls_short_is_said_with_its_numbers(made):
    metrics = runner.read(made / "trajectory")["metrics"]
    metrics["auroc_gain"]["4"] = {"value": -0.0123, "interval": [-0.02, -0.01]}
    metrics["auroc_gain"]["6"] = {"value": 0.2, "interval": [0.1, 0.3]}
    metrics["auroc_gain"]["8"] = {"value": 0.2, "interval": [-0.1, 0.3]}
    metrics["best_baseline"]["4"]["auroc"] = "probe"
    changed(made / "trajectory", metrics=metrics, gate={"auroc_worst": ">= 0.99"})
    short = shortfalls(run_in(made))["trajectory"]
    assert short[0] == f"auroc_worst is {metrics['auroc_worst']:.4g}, and >= 0.99 was wanted; the run stopped here."
    behind = "Block 4: by AUROC the head falls (-0.0123 [-0.02, -0.01]) behind probe, the best baseline there."
    assert behind in short
    assert not [line for line in short if line.startswith("Block 6: by AUROC")]
    assert any(
        line.startswith("Block 8: by AUROC the head is not surely (+0.2000 [-0.1, 0.3]) ahead of") for line in short
    )
    found = written([made], []).decode()
    assert f"<li>{behind}</li>" in found and "0 of 1 goals are met" in found and "✗ missed" in found


def test_taps_where_nothing_could_be_told_apart_are_named_and_the_rest_is_shown(made):
    metrics = runner.read(made / "trajectory")["metrics"]
    plots = json.loads((made / "trajectory/plots.json").read_text())
    taps = list(metrics["auroc"])
    for of in (*(metrics[name] for name in COMPARED), plots["auroc"], plots["risk_coverage"]):
        of.clear()
    metrics |= {"one_sided": dict.fromkeys(taps, "none"), "auroc_worst": None}
    (made / "trajectory/plots.json").write_text(json.dumps(plots))
    kept = runner.files(made / "trajectory")
    changed(made / "trajectory", metrics=metrics, files=kept, gate={"auroc_worst": ">= 0.9"})
    short = shortfalls(run_in(made))["trajectory"]
    assert short[0] == "auroc_worst could not be measured, and >= 0.9 was wanted; the run stopped here."
    assert f"Block {taps[0]}: no state of test is sufficient, so that there is nothing to tell apart" in short[1]
    found = written([made], []).decode()
    assert "there is nothing to compare" in found and "Routes" in found


def test_concepts_that_rows_do_not_name_are_left_open(made):
    metrics = runner.read(made / "semantic")["metrics"]
    metrics |= {name: None for name in metrics if name.startswith(("auroc", "probe_auroc"))}
    changed(made / "semantic", metrics=metrics)
    assert "says nothing of" not in written([made], []).decode()


def test_mended_states_codecs_and_promises_that_fall_short_are_said(made):
    metrics = runner.read(made / "depth")["metrics"]
    metrics["gain"] = {tap: {"value": 0.2, "interval": [0.1, 0.3]} for tap in metrics["gain"]}
    changed(made / "depth", metrics=metrics | {"cost": 1.5})
    metrics = runner.read(made / "calibrate")["metrics"]
    for kind in metrics["decisions"].values():
        for of in kind.values():
            of.update(threshold=1.0, risk=0.0, violations=0.0)
    metrics["decisions"]["revive"]["0.02"].update(risk=0.03, violations=0.2)
    for of in metrics["macs"].values():
        of.update(value=0.8, interval=[0.7, 0.9])
    metrics["route_accuracy"]["value"] = 0.9
    changed(made / "calibrate", metrics=metrics)
    short = shortfalls(run_in(made))
    assert short["depth"] == ["A module costs 1.5 of the cheapest block, no less than running that block."]
    assert short["calibrate"] == [
        "By revive at risk 0.02 the test documents met a risk of 0.03.",
        "The promise of revive at risk 0.02 broke in 0.2 of the resplits, more often than 0.1.",
    ]


def test_route_accuracy_stands_beside_the_public_one(whole):
    right = runner.read(smoke() / "trajectory")["metrics"]["route_accuracy"]["value"]
    row = re.search(r"<tr><th[^>]*>route accuracy \(public write-up: 0.8444, about 45 examples.*?</tr>", whole)[0]
    assert f"{right:.4f}" in row and PUBLIC == 0.8444


def test_figures_keep_missed_goals_and_what_was_not_measured_on_a_mac(whole):
    part = whole.split('id="figures"')[1]
    assert "decode.ratio is 0.9 [0.8, 1], and &gt;= 1 was wanted." in part
    assert "0.9*" in part and part.count("✗ missed") == 1 and part.count("✓ met") == 1 and part.count(">no goal<") == 1


def test_values_on_the_page_are_those_of_the_manifests(whole):
    table = runner.read(smoke() / "transfer")["metrics"]["baselines"]
    for name, of in table.items():
        row = re.search(rf'<tr><th scope="row">{name}</th>.*?</tr>', whole)[0]
        assert f">{of['bytes']:g}<" in row and f">{of['agreement']:.4f}<" in row
    counts = runner.read(smoke() / "calibrate")["metrics"]["confusion"]
    rows = re.findall(r'<tr><th scope="row">escalate</th>(.*?)</tr>', whole)
    assert any(re.findall(r">(\d+)</td>", row) == [str(n) for n in counts[3]] for row in rows)
