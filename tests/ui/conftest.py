"""A real tiny engine, a chat database in memory and the page's handlers over them; and the served page in a browser."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from playground import Engine, EngineConfig
from playground.sessions import SessionStore
from playground.ui.handlers import ChatHandlers
from playground.ui.host import EngineHost
from tests.ui.browser import NewTab, Tab, chromium, served
from tests.ui.endless import write_endless_model

TAB = "tab-1"


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineHost]:
    folder = write_endless_model(tmp_path_factory.mktemp("endless-llama"))
    with EngineHost() as host:
        host.load(EngineConfig(model=str(folder), device="cpu", dtype="float32", num_kv_blocks=2048)).result()
        yield host


@pytest.fixture
def engine(host: EngineHost) -> Engine:
    return host.require()


@pytest.fixture
def store() -> Iterator[SessionStore]:
    with SessionStore() as store:
        yield store


@pytest.fixture
def handlers(host: EngineHost, store: SessionStore) -> Iterator[ChatHandlers]:
    handlers = ChatHandlers(host, store)
    yield handlers
    handlers.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One app for a module's tests, with the endless model."""
    folder = tmp_path_factory.mktemp("served")
    model = write_endless_model(folder / "storyteller-test")
    with served(folder, "--model", str(model), "--device", "cpu", "--dtype", "float32") as app:
        yield app.address


@pytest.fixture
def new_tab(browser: Any, address: str) -> Iterator[NewTab]:
    """Opens tabs, each a user of its own; afterwards nothing may be amiss in any."""
    tabs: list[Tab] = []

    def make(**options: Any) -> Tab:
        tabs.append(Tab(browser, address, **options))
        return tabs[-1]

    yield make
    problems = [problem for tab in tabs for problem in tab.problems]
    for tab in tabs:
        tab.close()
    assert problems == []


def request(tab: str = TAB, **query: str) -> Any:
    """What the handlers read of a `gr.Request`."""
    return SimpleNamespace(session_hash=tab, query_params=query)


def event(**data: Any) -> Any:
    """What the handlers read of a `gr.EventData`."""
    return SimpleNamespace(_data=data)
