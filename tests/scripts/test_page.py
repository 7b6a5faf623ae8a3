"""The page of `agp serve` in a headless Chromium: what people see, by mouse, by keys, and read aloud.

Most replies come from a stand-in of the server (page_server.py), which says what no small run can be made to say; that
the page and the server understand each other is seen with `agp serve` itself, on a run whose thresholds let tokens go.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.launch import ROOT
from tests.scripts.page_server import DIFFERS, DRIFTS, MARKUP, PROSE, Stand
from tests.scripts.test_routes import lax
from tests.scripts.test_serve_peer import WORD, peer

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "headless no-sandbox disable-gpu disable-background-networking disable-quic no-first-run "
    "disable-component-update disable-sync disable-dev-shm-usage"
)
WIDE, NARROW = (1280, 900), (360, 740)
SAID = ".said, [role=alert]"
PATIENCE = 60  # seconds, on a machine that does other things too

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver here"),
]


@pytest.fixture(scope="module")
def chrome(tmp_path_factory) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in [*FLAGS.split(), f"user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, Service(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture
def stand() -> Iterator[Stand]:
    with Stand() as stand:
        yield stand


class Page:
    """The page as people use it; `failed` requests are those that a test made fail."""

    def __init__(self, chrome: Chrome, address: str, failed: int = 0):
        self.chrome, self.address, self.failed = chrome, address, failed
        self.look()
        chrome.get(address)
        self.until(lambda: "Asking" not in self.one("#about").text or self.all("[role=alert]"))

    def look(self, scheme: str = "light", size: tuple[int, int] = WIDE, motion: str = "no-preference") -> None:
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
        media = [{"name": name, "value": value} for name, value in features.items()]
        self.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == NARROW}
        self.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)

    def until(self, holds: Any) -> None:
        WebDriverWait(self.chrome, PATIENCE, 0.05).until(lambda _: holds())

    def all(self, css: str) -> list[WebElement]:
        return self.chrome.find_elements(By.CSS_SELECTOR, css)

    def one(self, css: str) -> WebElement:
        return self.chrome.find_element(By.CSS_SELECTOR, css)

    def run(self, script: str, *given: Any) -> Any:
        return self.chrome.execute_script(script, *given)

    def begin(self, text: str) -> None:
        self.one("#prompt").send_keys(text, Keys.ENTER)

    def say(self, text: str) -> None:
        """Until it is answered or refused: a key may be taken before the page acts on it."""
        before = len(self.all(SAID))
        self.begin(text)
        self.until(lambda: len(self.all(SAID)) > before and self.one("#send").is_enabled())

    def tokens(self, reply: int = 0) -> list[str]:
        script = "return [...document.querySelectorAll('.tokens')[arguments[0]].children].map((of) => of.textContent)"
        return self.run(script, reply)

    def said(self) -> str:
        return self.run("return document.getElementById('told').textContent")

    def focused(self) -> str:
        return self.run("return document.activeElement.getAttribute('aria-label') ?? document.activeElement.id")

    def press(self, *keys: str) -> str:
        for key in keys:
            self.chrome.switch_to.active_element.send_keys(key)
        return self.focused()

    def check(self) -> None:
        """Nothing was refused, nothing failed by itself, and nothing was asked of anyone else."""
        told = [line["message"] for line in self.chrome.get_log("browser")]
        failed = [line for line in told if "v1/" in line and re.search("status of 4", line)]
        assert told == failed and len(failed) == self.failed, told
        asked = self.run("return performance.getEntries().map(({ name }) => name).filter(name => name.includes(':'))")
        assert asked and all(name.startswith(self.address) for name in asked), asked


@pytest.fixture
def page(chrome, stand) -> Iterator[Page]:
    page = Page(chrome, stand.address)
    yield page
    page.check()


def test_a_message_is_answered_by_tokens_that_say_how_deep_they_went(page, stand):
    page.say("Reverse: a, b, c")
    (body,) = stand.asked
    assert body["messages"] == [{"role": "user", "content": "Reverse: a, b, c"}] and body["stream"] is True
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("tiny", 100, 0)
    assert body["agp"] == {"mode": "early", "risk": 0.01, "trace": True}
    tokens = page.tokens()
    assert tokens[DIFFERS] == "Every" and tokens[:DIFFERS] == PROSE[:DIFFERS] and tokens[-1] == "<turn|>"
    first, deep = (page.all(".token[role=option]")[at] for at in (0, 4))
    for words in (first.get_attribute("aria-label"), first.get_attribute("title")):
        assert words.startswith("token 1 “Here” · after block 4 · left early and was mended · vitality 0.97 · 5 ms")
    assert "after block 11, the last" in deep.get_attribute("aria-label")
    thick = [float(of.value_of_css_property("border-bottom-width").removesuffix("px")) for of in (first, deep)]
    assert 0 < thick[0] < thick[1]
    assert [of.text for of in page.all("#legend li")] == [
        *(f"block {block}" for block in (4, 6, 8, 10)),
        "block 11, the last",
        "sent to the peer",
    ]


def test_what_is_summed_up_of_a_reply_is_what_its_tokens_say(page):
    page.say("Reverse: a, b, c")
    assert page.one(".speed").text == "34 tokens · 82 % left early · 7.12 ms a token · 140 tokens a second"
    assert len(page.all(".strip rect")) == 28
    assert page.one(".strip").get_attribute("aria-label").startswith("Vitality of 28 tokens: 0.797 on average, 0.58 at")
    facts = page.one(".facts").text.splitlines()
    assert facts[:4] == ["Left after", "block 4", "13, 38 %", "block 6"] and "Depths mixed, on average" in facts
    assert facts[-5:-2] == ["Most frequent concepts", "task.reverse (15)", "delimiter.comma (7)"]
    assert "2 tokens: 43 ms till the peer answered, 21.5 ms each, 6.37 kB sent, 1.02 kB received" in " ".join(facts)


def test_a_token_shows_how_much_each_depth_counted_and_what_the_peer_was_sent(page):
    page.say("Reverse: a, b, c")
    for at, widths, words in (
        (0, [], "left early and was mended · vitality 0.97"),
        (2, [60, 30, 10], "mixed of block 4 60 %, block 6 30 %, block 8 10 %"),
        (8, [], "was sent to the peer · 12.5 ms · 21.5 ms till the peer answered, 3.18 kB sent, 512 bytes received"),
    ):
        page.all(".token[role=option]")[at].click()
        parts = page.run("return [...document.querySelectorAll('.mixed .bar')].map((of) => of.style.width)")
        assert parts == [f"{width}%" for width in widths] and words in page.one(".detail").text
    bars = page.run("return [...document.querySelectorAll('.bars')].map((of) => of.innerText.split('\\n'))")
    assert bars[1][::2] == ["block 4", "block 6", "block 8"]


def test_that_early_has_fallen_back_to_lossless_is_seen_and_heard(page):
    page.say("one")
    assert not page.one(".alarm").is_displayed()
    page.say("drift")
    said = f"⚠ Early has fallen back to lossless at token {DRIFTS + 1}: more tokens differed"
    assert page.all(".alarm")[1].text.startswith(said) and said in page.said()


def test_what_was_said_is_sent_again_with_the_next_message_until_a_new_conversation(page, stand):
    page.say("one")
    page.say("two")
    roles = [message["role"] for message in stand.asked[1]["messages"]]
    assert roles == ["user", "assistant", "user"] and "list" in stand.asked[1]["messages"][1]["content"]
    assert "<turn|>" not in stand.asked[1]["messages"][1]["content"]
    page.one("#fresh").click()
    assert not page.all(".token[role=option]") and page.focused() == "prompt"
    page.say("three")
    assert len(stand.asked[2]["messages"]) == 1


def test_a_mode_and_a_risk_are_chosen(page, stand):
    page.run("document.getElementById('risk').value = '0.02'")
    page.say("one")
    assert stand.asked[-1]["agp"]["risk"] == 0.02
    page.one("#mode option[value=full]").click()
    assert not page.one("#risk").is_displayed() and not page.one("#beside").is_displayed()
    page.say("two")
    assert stand.asked[-1]["agp"] == {"mode": "full", "trace": True}


@pytest.mark.parametrize("prompt", ["markup please", f"markup {MARKUP}"])
def test_markup_is_text(page, prompt):
    page.say(prompt)
    assert page.tokens() == [MARKUP] and page.one(".said").get_property("textContent") == f"You: {prompt}"
    assert MARKUP in page.said() and page.run("return window.ran") is None
    assert not page.all("#conversation script, #conversation img")


def test_half_a_character_has_a_token_and_text_without_one_is_not_lost(page):
    page.say("half")
    assert page.tokens() == ["", "é", "! held"] and "Reply: é! held" in page.said()


def test_an_error_is_said_in_words_and_the_message_is_there_to_be_mended(page, stand):
    page.failed = 1
    page.say("fail at this")
    (alert,) = page.all("[role=alert]")
    assert alert.text == "max_tokens is 100; <b>9</b> is the most"
    assert page.one("#prompt").get_attribute("value") == "fail at this" and not page.all(".reply")
    page.one("#prompt").clear()
    page.say("again")
    assert [message["content"] for message in stand.asked[-1]["messages"]] == ["again"]


def test_a_reply_that_breaks_off_keeps_what_came(page):
    page.say("break in the middle")
    assert page.one("[role=alert]").text == "The reply broke off: the server ended it in the middle."
    assert page.tokens() == PROSE[:5] and page.one(".speed").text.endswith("broke off")


def test_a_number_that_cannot_be_is_not_sent(page, stand):
    """Three times the same words are to go; what was held back would have gone before the number that can be."""
    most = page.one("#most")
    most.clear()
    page.begin("one")
    most.send_keys("101")  # the server says it writes 100 at most
    page.begin(" and")
    most.clear()
    most.send_keys("7")
    page.say(" more")
    (body,) = stand.asked
    assert body["max_tokens"] == 7 and body["messages"][-1]["content"] == "one and more"


def test_stop_ends_a_reply_and_keeps_what_came(page, stand):
    page.begin("slow")
    page.until(lambda: len(page.tokens()) > 5)
    assert not page.one("#send").is_enabled()
    page.one("#stop").click()
    page.until(lambda: page.one("#send").is_enabled())
    assert stand.left.wait(10) and page.one(".speed").text.endswith("stopped") and page.focused() == "prompt"
    count = len(page.tokens())
    page.say("one more")
    assert len(page.tokens()) == count and stand.asked[1]["messages"][1]["content"].startswith(" 0 1 2 3")
    assert not page.all("[role=alert]")


def test_a_new_conversation_ends_the_reply_that_still_comes(page, stand):
    page.begin("slow")
    page.until(lambda: page.all(".token[role=option]"))
    page.one("#fresh").click()
    assert stand.left.wait(10)
    page.say("one")
    assert page.tokens()[0] == "Here" and len(stand.asked[1]["messages"]) == 1


def test_side_by_side_marks_the_first_difference_and_says_both_speeds(page, stand):
    page.one("#beside").click()
    page.say("Reverse: a, b, c")
    assert [body["agp"]["mode"] for body in stand.asked] == ["full", "early"]
    assert len({body["seed"] for body in stand.asked}) == 1
    assert [of.text for of in page.all(".tokens .differs")] == ["Each", "Every"]
    first = f"≠ First difference at token {DIFFERS + 1}: full depth “Each”, early exits “Every”."
    assert page.one(".verdict").text == f"{first} 1.76 times the speed of full depth." and first in page.said()
    speeds = [of.text for of in page.all(".speed")]
    assert "12.5 ms a token" in speeds[0] and "7.12 ms a token" in speeds[1]
    left, right = (of.rect for of in page.all(".reply"))
    assert left["y"] == right["y"] and left["x"] < right["x"]
    page.one("#mode option[value=lossless]").click()
    page.say("again")
    assert page.all(".verdict")[-1].text.startswith("≡ Token for token the same.")
    assert [message["role"] for message in stand.asked[-1]["messages"]] == ["user", "assistant", "user"]


def test_everything_is_reached_by_keys(page):
    page.run("document.activeElement.blur()")
    walk = [page.press(Keys.TAB) for _ in range(8)]
    assert walk[1:] == ["mode", "risk", "most", "temperature", "beside", "prompt", "send"]
    page.say("Reverse: a, b, c")
    page.run("document.getElementById('beside').focus()")
    assert page.press(Keys.TAB).startswith("token 1 ")  # one stop for all tokens
    assert page.one(".detail").text.startswith("token 1 “Here”")
    assert page.press(Keys.RIGHT).startswith("token 2 ") and page.press(Keys.END).startswith("token 34 ")
    assert page.press(Keys.RIGHT).startswith("token 34 ") and page.press(Keys.HOME, Keys.LEFT).startswith("token 1 ")
    assert page.press(Keys.DOWN).startswith("token 10 “c”") and page.press(Keys.UP).startswith("token 1 ")
    assert "concepts: task.reverse, delimiter.comma" in page.press(*[Keys.RIGHT] * 3)
    style = "getComputedStyle(document.activeElement)"
    assert page.run(f"return {style}.outlineStyle !== 'none' && parseFloat({style}.outlineWidth)") >= 2
    assert len(page.all(".tokens [tabindex='0']")) == len(page.all(".tokens [aria-selected=true]")) == 1
    assert page.press(Keys.TAB) == page.run("return document.activeElement.id") == ""  # the summary of details
    assert page.run("return document.activeElement.tagName") == "SUMMARY"
    assert page.press(Keys.TAB) == "prompt"


def test_shift_and_enter_is_a_new_line(page, stand):
    page.one("#prompt").send_keys("one", Keys.SHIFT, Keys.ENTER, Keys.NULL, "two")
    assert stand.asked == []
    page.say("")
    assert stand.asked[0]["messages"][0]["content"] == "one\ntwo"


def test_a_reply_is_read_aloud_once_when_it_is_whole(page):
    script = """
        window.heard = [];
        const told = document.getElementById('told');
        new MutationObserver(() => told.textContent && heard.push(told.textContent)).observe(told, { childList: true });
    """
    page.run(script)
    page.say("Reverse: a, b, c")
    (heard,) = page.run("return window.heard")
    assert heard.startswith("Reply: Here is the list, turned around:") and "82 % left early" in heard
    assert page.one("#told").get_attribute("aria-live") == "polite"
    assert len(page.all("[aria-live], [role=status], [role=log]")) == 1
    marks = [of.tag_name for of in page.all("header, main, aside, form[aria-label]")]
    assert marks == ["header", "aside", "main", "form"]
    unlabelled = "[...document.querySelectorAll('input, select, textarea')].filter((of) => !of.labels.length)"
    assert page.run(f"return {unlabelled}.length") == 0


def test_without_motion_nothing_moves(page):
    for motion, name in (("no-preference", "beat"), ("reduce", "none")):
        page.look(motion=motion)
        page.begin("slow")
        page.until(lambda: page.all(".going .token"))
        script = "return getComputedStyle(document.querySelector('.going .tokens'), '::after').animationName"
        assert page.run(script) == name
        page.one("#fresh").click()


CONTRAST = """
    const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => {
        const linear = (v) => (v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        const [r, g, b] = parts(colour).map((v) => linear(v / 255));
        return .2126 * r + .7152 * g + .0722 * b;
    };
    const behind = (node) => {
        const colour = getComputedStyle(node).backgroundColor;
        return parts(colour)[3] === 0 && node.parentElement ? behind(node.parentElement) : colour;
    };
    const contrast = (node) => {
        const [a, b] = [light(getComputedStyle(node).color), light(behind(node))];
        return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    };
    const holds = (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    return [...document.body.querySelectorAll('*')]
        .filter((node) => holds(node) && !node.disabled && node.checkVisibility())
        .map((node) => [contrast(node), node.className || node.id || node.tagName])
        .filter(([ratio]) => ratio < 4.5);
"""


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_light_and_dark_on_a_desk_and_on_a_telephone(page, scheme, size, tmp_path):
    page.look(scheme, size)
    page.say("Reverse: a, b, c")
    page.run("document.getElementById('beside').click()")
    page.failed = 1
    page.say("fail")
    page.one("#prompt").clear()
    page.say("Reverse: a, b, c, and " + "m" * 100)
    paper = {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 28)"}[scheme]
    assert page.run("return getComputedStyle(document.documentElement).backgroundColor") == paper
    assert page.run(CONTRAST) == []
    assert page.run("return document.documentElement.scrollWidth <= window.innerWidth")
    tokens = page.all(".tokens .token")
    colours = {of.value_of_css_property("background-color") for of in tokens}
    assert len(colours) == 5
    picture = tmp_path / f"{scheme}.png"
    assert page.chrome.save_screenshot(str(picture)) and picture.stat().st_size > 10_000


def test_what_has_focus_is_not_hidden_behind_the_form(page):
    page.look(size=NARROW)
    page.say("Reverse: a, b, c")
    page.run("document.querySelector('.tokens [role=option]').focus(); window.scrollTo(0, 0)")
    for _ in range(33):
        page.press(Keys.RIGHT)
        bottom, top = page.run(
            "return [document.activeElement.getBoundingClientRect().bottom, document.getElementById('form')"
            ".getBoundingClientRect().top]"
        )
        assert bottom <= top


def test_without_heads_there_is_no_mode_to_choose(chrome):
    with Stand(heads=False) as stand:
        page = Page(chrome, stand.address)
        assert page.one("#about").text == "tiny"
        assert not any(page.one(f"#{name}").is_displayed() for name in ("mode", "risk", "beside", "legend"))
        page.say("one")
        assert "".join(page.tokens()).startswith("Here is the list") and "left early" not in page.one(".speed").text
        page.check()


def test_a_server_that_wants_a_token_is_given_one(chrome):
    with Stand(token="open") as stand:
        page = Page(chrome, stand.address, failed=1)
        assert page.one("[role=alert]").text == "the token is missing, or is another"
        page.one("#token").send_keys("open", Keys.TAB)
        page.until(lambda: page.one("#about").text == "tiny · 12 blocks · with a peer")
        page.say("one")
        assert page.tokens()[0] == "Here"
        page.check()


def test_a_server_that_is_gone_is_said_to_be(chrome):
    with Stand() as stand:
        page = Page(chrome, stand.address)
    page.say("one")
    assert page.one("[role=alert]").text == "The server does not answer. Is it still running?"
    chrome.get_log("browser")  # says so too


def test_the_server_itself_answers_the_page_with_a_peer_beside_it(chrome, tmp_path):
    (tmp_path / "run").mkdir()
    token, run = tmp_path / "token", lax(tmp_path / "run")
    token.write_text(WORD)
    with peer(run) as (_, address):
        words = ["serve", "--run", run, "--port", "0", "--peer", address, "--peer-token-file", str(token)]
        words += ["--prompt", "700"]
        answered_by([sys.executable, "-m", "scripts.cli", *words], chrome)


def answered_by(command: list[str], chrome) -> None:
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
        try:
            page = Page(chrome, address_of(server))
            page.one("#beside").click()
            page.say("Reverse: a b c")
            assert not page.all("[role=alert]")
            full, early = (page.run(DEPTHS, at) for at in (0, 1))
            assert full and early and set(full) == {11} and 4 in early
            assert page.one(".verdict").text[0] in "≠≡" and "vitality" in page.all(".figure, figure")[1].text.lower()
            page.one("#mode option[value=lossless]").click()
            page.say("Reverse: d e f")
            assert page.all(".verdict")[-1].text.startswith("≡ Token for token the same.")
            assert "with a peer" in page.one("#about").text
            facts = page.all(".facts")[-1].get_property("textContent")
            assert re.search(r"To the peer\d+ tokens?: [\d.,]+ ms till .*sent.*received", facts), facts
            page.failed = 1
            page.say("word " * 800)
            assert re.match(r"the prompt has \d+ tokens, .* 700 at most", page.one("[role=alert]").text)
            page.check()
        finally:
            server.terminate()
            assert server.stderr
            server.stderr.read()


DEPTHS = """
    const words = [...document.querySelectorAll('.tokens')[arguments[0]].children].map((of) => of.ariaLabel);
    return words.map((of) => Number(of.match(/after block (\\d+)/)[1]));
"""


def address_of(server: subprocess.Popen) -> str:
    assert server.stderr
    for line in server.stderr:
        if found := re.search(r"the page is (\S+)", line):
            return found[1]
    raise AssertionError("the server ended before it began")
