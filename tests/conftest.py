"""How the tests run: e2e tests where namespaces can be made, what was left out and why, hypothesis profiles."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parent.parent
# Last, so that a build under test (make asan) is found before the checkout.
sys.path.append(str(ROOT))

from ipsec.net import netns  # noqa: E402
from tools import netadmin  # noqa: E402

#: set in the child of E2eChild: where its reports go
REPORTS_FD = "IPSEC_TEST_REPORTS_FD"

settings.register_profile("test", deadline=None, derandomize=True)
settings.register_profile("soak", deadline=None, max_examples=5000)
settings.load_profile("test")

child_key = pytest.StashKey["E2eChild"]()
way_key = pytest.StashKey[str]()
#: in what a worker of parallel tests tells at its end
E2E_WAY = "e2e_way"
E2E_GROUP = "e2e"


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are CPUs: tests of tunnels wait more than they compute."""
    return (os.cpu_count() or 1) + 1


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(E2eGroup())
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # in the background of a script; what the tests start is to heed it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # ip, ethtool and tc live where an ordinary user's PATH does not look
    os.environ["PATH"] = netadmin.environment()["PATH"]
    if REPORTS_FD in os.environ:
        # this is the child, in the namespaces that it needs
        config.pluginmanager.register(ReportWriter(config, int(os.environ.pop(REPORTS_FD))))


@pytest.fixture(scope="session", autouse=True)
def hypothesis_has_begun() -> None:
    """Let Hypothesis run once before the first test.

    It asks the garbage collector then who refers to its generator, and warns if nobody does: so it looks after a
    daemon has frozen what there is.
    """

    @given(st.none())
    def nothing(_: None) -> None:
        pass

    nothing()


class E2eGroup:
    """Of several workers one runs all e2e tests if they need a child. xdist looks at the marks before conftest does."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if item.get_closest_marker("e2e") and netadmin.find_way().prefix:
                item.add_marker(pytest.mark.xdist_group(E2E_GROUP))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run e2e tests here, in a child behind ``unshare``, or not at all: whatever this machine allows."""
    e2e = [item for item in items if item.get_closest_marker("e2e")]
    if not e2e or config.option.collectonly:
        return
    way = netadmin.find_way()
    if way.obstacles:
        for item in e2e:
            item.add_marker(pytest.mark.skip(reason=f"no network namespaces ({'; '.join(way.obstacles)})"))
    elif way.prefix:
        config.stash[child_key] = E2eChild(config, way, e2e)
        config.stash[way_key] = way.name
        for item in e2e:
            item.add_marker(pytest.mark.timeout(0))  # the child keeps the time
        if hasattr(config, "workeroutput"):
            config.workeroutput[E2E_WAY] = way.name


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """In the session that the workers belong to."""
    way = getattr(node, "workeroutput", {}).get(E2E_WAY)
    if way:
        node.config.stash[way_key] = way


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    child = item.config.stash.get(child_key, None)
    if child is None or item.nodeid not in child.nodeids:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in child.reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_unconfigure(config: pytest.Config) -> None:
    child = config.stash.get(child_key, None)
    if child is not None:
        child.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Octets that are no text, which hostile tests make the daemon log, could not be sent from a worker."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was left out and why, grouped by reason, and how the e2e tests got their namespaces."""
    skipped: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        skipped.setdefault(reason.removeprefix("Skipped: "), []).append(report.nodeid)
    if skipped:
        terminalreporter.section("left out, and why")
        for reason, nodeids in skipped.items():
            files = sorted({nodeid.split("::")[0] for nodeid in nodeids})
            terminalreporter.line(f"{len(nodeids)} tests in {', '.join(files)}: {reason}")
    way = terminalreporter.config.stash.get(way_key, "")
    if way:
        terminalreporter.line(f"e2e tests ran {way}")


@pytest.fixture
def own_network() -> Iterator[None]:
    """The test is in a network namespace with nothing but a loopback device: raw sockets hear what all others send."""
    name = f"net-own-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        with netns.inside(name):
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


class E2eChild:
    """One pytest for all e2e tests of this session, in namespaces of its own; its reports are replayed here."""

    def __init__(self, config: pytest.Config, way: netadmin.Way, items: list[pytest.Item]) -> None:
        self.config = config
        self.way = way
        self.nodeids = {item.nodeid: item.nodeid.removesuffix(f"@{E2E_GROUP}") for item in items}
        "as they are here, where xdist adds the group, and in the child"
        self._ready: dict[str, list[pytest.TestReport]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: IO[str] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="ipsec-e2e-", ignore_cleanup_errors=True)
        self._output = Path(self._folder.name, "output")

    def reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        """Setup, call and teardown reports of one test, as soon as the child has all three."""
        if self._process is None:
            self._start()
        assert self._lines is not None
        nodeid = self.nodeids[item.nodeid]
        while not any(report.when == "teardown" for report in self._ready.get(nodeid, ())):
            line = self._lines.readline()
            if not line:
                self._ready[nodeid] = [self._lost(item)]
                break
            report = self.config.hook.pytest_report_from_serializable(config=self.config, data=json.loads(line))
            if isinstance(report.longrepr, list):
                report.longrepr = tuple(report.longrepr)  # what JSON made of a skip
            self._ready.setdefault(report.nodeid, []).append(report)
        for report in self._ready.pop(nodeid):
            report.nodeid = item.nodeid
            yield report

    def _start(self) -> None:
        reader, writer = os.pipe()
        command = [sys.executable, "-m", "pytest", "-m", "e2e", "-p", "no:cacheprovider"]
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [*self.way.prefix, *command, f"--basetemp={self._folder.name}/tmp", *self.nodeids.values()],
                cwd=self.config.rootpath,
                env={**os.environ, REPORTS_FD: str(writer)},
                pass_fds=[writer],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        os.close(writer)
        self._lines = os.fdopen(reader, encoding="utf-8")

    def _lost(self, item: pytest.Item) -> pytest.TestReport:
        """A failure for a test that the child never finished, with the end of what the child had to say."""
        said = self._output.read_text(errors="replace")[-4000:]
        text = f"the e2e child ended before this test did; it said:\n{said}"
        return pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call", [], 0.0)

    def close(self) -> None:
        """End the child, which is still at work if this session stopped early; its fixtures may clean up."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._lines is not None:
            self._lines.close()
        self._folder.cleanup()


class ReportWriter:
    """In the child: sends each report to the parent as a line of JSON."""

    def __init__(self, config: pytest.Config, fd: int) -> None:
        self.config = config
        self.stream = os.fdopen(fd, "w", encoding="utf-8")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data: dict[str, Any] = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.stream.write(json.dumps(data) + "\n")
        self.stream.flush()

    def pytest_unconfigure(self) -> None:
        self.stream.close()
