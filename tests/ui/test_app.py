"""What the playground serves, to whom, and what browsers are told of it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

from tests.ui.conftest import REPORT


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as made:
        yield made


def test_the_page_names_no_other_machine_to_load_from(client: httpx.Client, url: str) -> None:
    home = client.get("/")
    assert home.status_code == 200
    policy = home.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert not re.search(r"https?:", policy)
    loaded = re.findall(r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["'](https?://[^"']*)""", home.text)
    assert [one for one in loaded if not one.startswith(url)] == []
    assert not re.search(r"fonts\.(googleapis|gstatic)", home.text + client.get("/theme.css").text)
    config = client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert not config.get("run_history")


def test_reports_are_sealed(client: httpx.Client) -> None:
    shown = client.get("/reports/0")
    assert shown.text == REPORT
    assert shown.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    for path in ("/reports/1", "/reports/-1"):
        assert client.get(path).status_code == 404


def test_files_and_strangers(client: httpx.Client) -> None:
    assert client.get("/gradio_api/file=/etc/passwd").status_code in (403, 404)
    assert client.post("/gradio_api/upload", files={"files": b"x" * 100}).status_code >= 400
    assert client.get("/", headers={"Host": "rebound.example"}).status_code == 400
    assert client.get("/", headers={"Host": "localhost:7860"}).status_code == 200
