"""The status page in a real browser, asking a real server."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import Locator, Page, Route, expect

from tests.support.http import free_port
from tests.support.load import Load
from tests.support.server import Server
from tests.support.tokens import create
from tests.support.waiting import WAIT_SECONDS, wait_until

# Generous, because a loaded machine is slow: a passing test never waits this long.
expect.set_options(timeout=1000 * WAIT_SECONDS)

NUMBER = re.compile(r"[1-9]")


def headline(page: Page) -> Locator:
    return page.locator("#headline")


@contextlib.contextmanager
def stopped(server: Server, role: str) -> Iterator[None]:
    """Have a process of a server answer nothing for a moment."""
    pid = server.pids()[role]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def hide(page: Page, is_hidden: bool) -> None:
    """Tell the page that its tab is hidden, or seen again."""
    hidden = f"Object.defineProperty(document, 'hidden', {{configurable: true, get: () => {str(is_hidden).lower()}}});"
    page.evaluate(hidden + "document.dispatchEvent(new Event('visibilitychange'))")


def with_two_issues_of_a_code(route: Route) -> None:
    """Answer as the server, which cannot read some segments: its uploader tells so, and its supervisor."""
    answer = route.fetch()
    issue = {"code": "unreadable_segments", "severity": "critical", "recommendation": ""}
    issues = [issue | {"message": message} for message in ("the first", "the second")]
    route.fulfill(response=answer, json=answer.json() | {"issues": issues})


# What is served


def test_the_page_is_one_file_that_may_load_nothing_else(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1) as server:
        got = server.get("/")
        assert (got.status, got.headers["content-type"]) == (200, "text/html; charset=utf-8")
        policy = dict(rule.split(" ", 1) for rule in got.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["connect-src"] == "'self'"
        for kind in ("style-src", "script-src"):
            assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", policy[kind])
        outside = re.findall(rb"""(?:src|href|url)\s*[=(]\s*["']?(?!data:)[\w/.:]+""", got.body)
        assert outside == []
        with server.client() as client:
            known = client.request("GET", "/", headers={"If-None-Match": got.headers["etag"]})
            assert (known.status, known.body, known.headers["etag"]) == (304, b"", got.headers["etag"])
            assert client.request("GET", "/", headers={"If-None-Match": '"other"'}).status == 200
        answers = server.get("/api/v1/status").json()["instance"]["requests"]
        wait_until(lambda: server.get("/api/v1/status").json()["instance"]["requests"].get("/", {}).get("304"), answers)
        server.stop()


# Live


def test_numbers_move_only_while_records_are_written(tmp_path: Path, page: Page) -> None:
    """Numbers move while records are written and rest when nobody writes."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with Server(tmp_path, server_workers=2) as server:
        page.goto(server.url)
        expect(headline(page)).to_have_text("Data is safe")
        expect(page.locator("#records-rate")).to_have_text("0")
        expect(page.locator("#workers tr")).to_have_count(2)
        with Load(server, connections=2, pause_seconds=0.01) as load:
            load.wait_for_requests(5)
            for rate in ("records-rate", "bytes-rate", "requests-rate", "ack-p99", "ack-p50", "rows-rate"):
                expect(page.locator(f"#{rate}")).to_have_text(NUMBER)
            expect(page.locator("#databases tr")).to_have_count(2)
            records = page.locator("#databases tr").first.locator("td").nth(1)
            before = records.inner_text()
            expect(records).not_to_have_text(before)
            expect(page.locator("#answers tr").first).to_contain_text("202")
            # What the chart shows is what was read.
            assert "L" in (page.locator("[data-chart=records] path.first").get_attribute("d") or "")
        expect(page.locator("#records-rate")).to_have_text("0")
        server.stop()
    assert set(asked) <= {f"{page.url}", f"{page.url}api/v1/status"}


def test_files_and_what_becomes_of_them_are_shown(tmp_path: Path, page: Page) -> None:
    options = {"compaction_enabled": "true", "retention_days": '{"db": 7}'}
    with Server(tmp_path, server_workers=1, **options) as server:
        page.goto(server.url)
        server.write({"m": "cpu", "columns": {"usage": [0.5, 0.6]}})
        expect(page.locator("#rows-per-file")).to_have_text("2.00")
        expect(page.locator("#file-size")).to_have_text(NUMBER)
        expect(page.locator("#compaction-state")).to_have_text("alive")
        expect(page.locator("#compaction-look")).to_contain_text("ago")
        expect(page.locator("#compaction-waiting")).to_have_text("none")
        expect(page.locator("#retention")).to_contain_text("nothing goes before")
        server.stop()


def test_tables_are_shown_where_there_are_any(tmp_path: Path, page: Page) -> None:
    with Server(tmp_path, server_workers=1) as server:
        page.goto(server.url)
        expect(page.locator("#records-rate")).to_have_text("0")
        expect(page.locator("#lake-tables-card")).to_be_hidden()
        server.stop()
        server.settings |= {"tables_format": "delta", "tables_commit_interval_seconds": 0.2}
        server.start()
        page.goto(server.url)
        server.write({"m": "cpu", "columns": {"usage": [0.5, 0.6]}})
        expect(page.locator("#commit-rows")).to_have_text("2 rows in 1 file")
        expect(page.locator("#committer-state")).to_have_text("alive")
        expect(page.locator("#commit-last")).to_contain_text("ago")
        expect(page.locator("#commit-waiting")).to_have_text("nothing")
        expect(page.locator("#lake-tables-note")).to_contain_text("delta, every")
        server.stop()


def test_compaction_that_is_off_has_no_figures_on_the_page(tmp_path: Path, page: Page) -> None:
    with Server(tmp_path, server_workers=1) as server:
        page.goto(server.url)
        expect(page.locator("#compaction-state")).to_have_text("off")
        expect(page.locator("#compaction-look")).to_be_hidden()
        server.stop()


def test_a_worker_that_dies_and_its_successor_do_not_disturb_the_picture(tmp_path: Path, page: Page) -> None:
    with Server(tmp_path, server_workers=2) as server, Load(server, 2, 0.02) as load:
        page.goto(server.url)
        expect(headline(page)).to_have_text("Data is safe")
        page.evaluate(
            "headlines = new Set(); new MutationObserver(() => headlines.add(document.querySelector('#headline')"
            ".textContent)).observe(document.querySelector('#headline'), {childList: true, characterData: true})"
        )
        pid = page.locator("#workers tr").nth(1).locator("td").nth(1)
        dead = server.kill("ingest 2")
        expect(pid).not_to_have_text(str(dead))
        expect(page.locator("#workers-note")).to_have_text(re.compile("1\u00a0restart since"))
        expect(page.locator("#warnings")).to_contain_text(f"ingest 2 (pid {dead}) died")
        expect(page.locator("#notes")).to_contain_text("1 × a worker")
        load.wait_for_requests(20)
        expect(page.locator("#records-rate")).to_have_text(NUMBER)
        assert not any("Not answering" in text for text in page.evaluate("[...headlines]"))
        server.stop()


def test_a_server_that_is_gone_is_told_as_such_and_its_return_is_seen(tmp_path: Path, page: Page) -> None:
    with Server(tmp_path, server_workers=1, server_port=free_port()) as server:
        page.goto(server.url)
        expect(headline(page)).to_have_text("Data is safe")
        server.write({"m": "cpu", "columns": {"usage": [1]}})
        expect(page.locator("#databases")).to_contain_text("default")
        # Nor are figures shown that the server itself does not know.
        answer = server.get("/api/v1/status").json()["instance"]
        for unknown in ({"supervisor_alive": False}, {"wal_unlisted": True}):
            told = page.evaluate("behind", answer | {"backlog_segments": 0, "oldest_unshipped_seconds": 0} | unknown)
            assert told == "How much waits for upload is not known now."
        server.stop()
        expect(headline(page)).to_have_text(re.compile(r"^Not answering since \d\d:\d\d:\d\d$"))
        explanation = page.locator("#explanation")
        expect(explanation).to_contain_text(re.compile(r"The last data is of \d\d:\d\d:\d\d"))
        expect(explanation).to_contain_text("What was acknowledged is in the WAL")
        expect(explanation).to_contain_text("Asking again in")
        expect(page.locator("#data")).to_have_class("old")
        expect(page).to_have_title("Not answering · arcpipe")
        # The old figures stay readable, as what they are.
        expect(page.locator("#databases")).to_contain_text("default")
        with page.expect_request("**/api/v1/status"):
            page.get_by_role("button", name="Try now").click()
        server.start()
        expect(headline(page)).to_have_text("Data is safe")
        expect(page.locator("#data")).not_to_have_class("old")
        expect(page.get_by_role("button", name="Try now")).to_be_hidden()
        # Counters have begun anew: nothing is negative, and nothing of the former start is left.
        expect(page.locator("#records-rate")).to_have_text("0")
        expect(page.locator("#databases tr")).to_have_count(0)
        server.stop()


def test_nobody_is_asked_while_the_tab_is_hidden(tmp_path: Path, page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with Server(tmp_path, server_workers=1) as server:
        page.goto(server.url)
        expect(headline(page)).to_have_text("Data is safe")
        hide(page, True)
        expect(page.locator("#pulse")).to_have_text("paused")
        count = len(asked)
        page.wait_for_timeout(2500)  # two polls and a half
        assert len(asked) == count
        page.route("**/api/v1/status", with_two_issues_of_a_code)
        hide(page, False)
        expect(page.locator("#pulse")).to_have_text(re.compile("^live"))
        expect(page.locator("#issues .severity + div p:first-child")).to_have_text(["The first", "The second"])
        server.stop()


# Who may see it


def test_the_page_asks_for_a_token_and_keeps_it_in_this_tab_only(tmp_path: Path, page: Page) -> None:
    write, read = (create(tmp_path, "--scope", scope) for scope in ("write", "read"))
    with Server(tmp_path, server_workers=1, auth_enabled=True) as server:
        page.goto(server.url)
        expect(headline(page)).to_have_text("A token is needed")
        field = page.get_by_label("Token with the scope")
        expect(field).to_be_focused()
        expect(page.locator("#data")).to_be_hidden()
        for wrong, why in (("arcpipe_nonsense", "not known"), (write, "lacks the scope 'read'"), ("a b", "no token")):
            field.fill(wrong)
            page.keyboard.press("Enter")
            expect(page.locator("#ask-error")).to_contain_text(why)
            expect(headline(page)).to_have_text("A token is needed")
        field.fill(read)
        page.get_by_role("button", name="Show the status").click()
        expect(headline(page)).to_have_text("Data is safe")
        expect(page.locator("#data")).to_be_visible()
        expect(field).to_be_hidden()
        page.reload()
        expect(headline(page)).to_have_text("Data is safe")
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        other = page.context.new_page()
        other.goto(server.url)
        expect(headline(other)).to_have_text("A token is needed")
        page.get_by_role("button", name="Forget the token").click()
        expect(headline(page)).to_have_text("A token is needed")
        expect(page.locator("#data")).to_be_hidden()
        assert page.evaluate("sessionStorage.length") == 0
        server.stop()


def test_an_answer_to_a_token_that_was_forgotten_is_not_shown(tmp_path: Path, page: Page) -> None:
    read = create(tmp_path, "--scope", "read")
    with Server(tmp_path, server_workers=1, auth_enabled=True) as server:
        page.goto(server.url)
        page.get_by_label("Token with the scope").fill(read)
        page.keyboard.press("Enter")
        expect(headline(page)).to_have_text("Data is safe")
        with stopped(server, "ingest 1"):
            with page.expect_request("**/api/v1/status"):
                pass
            page.get_by_role("button", name="Forget the token").click()
            expect(headline(page)).to_have_text("Asking how it is …")
            expect(page.locator("#explanation")).to_have_text("")
        expect(headline(page)).to_have_text("A token is needed")
        expect(page.locator("#data")).to_be_hidden()
        server.stop()


def test_the_refusal_of_an_earlier_token_does_not_forget_the_next_one(tmp_path: Path, page: Page) -> None:
    write, read = (create(tmp_path, "--scope", scope) for scope in ("write", "read"))
    with Server(tmp_path, server_workers=1, auth_enabled=True) as server:
        page.goto(server.url)
        expect(headline(page)).to_have_text("A token is needed")
        with stopped(server, "ingest 1"):
            for token in (write, read):
                page.get_by_label("Token with the scope").fill(token)
                page.keyboard.press("Enter")
            hide(page, True)  # and a look at another tab before its answer does not forget it either
            hide(page, False)
        expect(headline(page)).to_have_text("Data is safe")
        expect(page.locator("#ask")).to_be_hidden()
        server.stop()


# For everybody

# Every text that can be seen, with its contrast to what is behind it: WCAG 2.2, 1.4.3.
LOW_CONTRAST = r"""() => {
  const parse = color => {
    const [r, g, b, a = 1] = color.match(/[\d.e-]+/g).map(Number);
    return color.startsWith("color(") ? [255 * r, 255 * g, 255 * b, a] : [r, g, b, a];
  };
  const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const behind = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const luminance = ([r, g, b]) => [r, g, b].map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, style = getComputedStyle(element);
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    const back = behind(element), [a, b] = [luminance(over(parse(style.color), back)), luminance(back)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (contrast < (large ? 3 : 4.5)) found.push([walker.currentNode.textContent, contrast.toFixed(2)]);
  }
  return found;
}"""

# What a screen reader would stumble over.
UNNAMED = r"""() => {
  const found = [], all = selector => [...document.querySelectorAll(selector)];
  const check = (fine, what, element) => { if (!fine) found.push(`${what}: ${element?.outerHTML.slice(0, 120)}`); };
  for (const e of all("[id]")) check(document.getElementById(e.id) === e, "an id that is there twice", e);
  for (const name of ["aria-labelledby", "aria-describedby"])
    for (const e of all(`[${name}]`)) check(document.getElementById(e.getAttribute(name)), `${name} leads nowhere`, e);
  for (const e of all("[role=meter], [role=slider]")) {
    check(e.ariaLabel, "no name", e);
    const [low, now, high] = [e.ariaValueMin, e.ariaValueNow, e.ariaValueMax].map(Number);
    check(low <= now && now <= high, "no value", e);
  }
  for (const e of all("button, input"))
    check(!e.checkVisibility() || e.textContent.trim() || e.labels?.length, "no name", e);
  for (const e of all("th")) check(e.scope, "no scope", e);
  const levels = all("h1, h2, h3").filter(e => e.checkVisibility()).map(e => Number(e.tagName[1]));
  check(levels[0] === 1 && levels.lastIndexOf(1) === 0, `not one h1 at the start: ${levels}`);
  levels.forEach((level, i) => check(!i || level <= levels[i - 1] + 1, `a level is left out: ${levels}`));
  for (const landmark of ["header", "main", "footer"]) check(all(`body > ${landmark}`).length === 1, `no ${landmark}`);
  check(document.documentElement.lang === "en", "no language");
  return found;
}"""


def overflowing(page: Page) -> Any:
    """How far the page is wider than the window, and what sticks out of its card."""
    return page.evaluate("""() => {
      const found = [], over = document.documentElement.scrollWidth - innerWidth;
      if (over > 0) found.push(["page", over]);
      for (const card of document.querySelectorAll(".card, #verdict")) {
        const right = card.getBoundingClientRect().right;
        for (const e of card.querySelectorAll("*")) {
          const box = e.getBoundingClientRect();
          const over = Math.max(box.right - right, e.matches("td, th, dt, dd, p") ? e.scrollWidth - e.clientWidth : 0);
          if (box.width > 1 && over > 0.5) found.push([e.outerHTML.slice(0, 80), over]);
        }
      }
      return found;
    }""")


def test_everybody_can_read_it_on_any_screen_and_by_keyboard(tmp_path: Path, page: Page) -> None:
    """Everybody can read it on any screen in light and dark with the keyboard."""
    with (
        Server(tmp_path, server_workers=2, server_port=free_port()) as server,
        Load(server, connections=2, pause_seconds=0.02) as load,
    ):
        server.kill("ingest 1")  # for a warning to be shown
        server.write({"m": "cpu", "columns": {"usage": [1]}}, database="n" * 64)
        load.wait_for_requests(10)
        page.emulate_media(reduced_motion="reduce")
        page.goto(server.url)
        expect(page.locator("#records-rate")).to_have_text(NUMBER)
        expect(page.locator("#warnings li")).not_to_have_count(0)
        expect(page.locator("#databases tr")).to_have_count(3)
        assert page.evaluate("document.getAnimations().length") == 0
        assert page.evaluate(UNNAMED) == []
        live = page.locator("[role=status], [role=alert], [aria-live]")
        assert "records" not in " ".join(live.all_inner_texts())  # nothing that changes each second is read aloud
        for width in (360, 768, 1280):
            page.set_viewport_size({"width": width, "height": 800})
            assert overflowing(page) == [], width
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme, reduced_motion="reduce")
            assert page.evaluate(LOW_CONTRAST) == [], theme

        # With the keyboard: each stop is seen, and a chart tells its history.
        page.keyboard.press("Tab")
        chart = page.get_by_role("slider", name="Accepted records per second, history")
        expect(chart).to_be_focused()
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        expect(chart).to_have_attribute("aria-valuetext", re.compile(r"^now: .+\srecords/s$"))
        page.keyboard.press("ArrowLeft")
        expect(chart).to_have_attribute("aria-valuetext", re.compile(r"^\d\d:\d\d:\d\d: .+\srecords/s$"))
        page.keyboard.press("Escape")
        expect(chart).to_have_attribute("aria-valuenow", "0")

        # Nothing jumps while numbers change.
        page.evaluate(
            "shift = 0; new PerformanceObserver(list => list.getEntries().forEach(entry => shift += entry.value))"
            ".observe({type: 'layout-shift'})"
        )
        load.wait_for_requests(100)
        page.wait_for_timeout(2000)
        assert page.evaluate("shift") < 0.01

        load.stop()
        server.stop()
        expect(page.locator("#data")).to_have_class("old")
        themes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
        for theme in themes:
            page.emulate_media(color_scheme=theme, reduced_motion="reduce")
            assert page.evaluate(LOW_CONTRAST) == [], f"{theme}, not answering"
        page.set_viewport_size({"width": 360, "height": 800})
        assert overflowing(page) == []
