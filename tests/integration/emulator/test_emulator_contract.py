"""Compare the emulator's responses with recorded ones of EIA: keys and their order, types, error bodies, headers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import requests

from ingest.emulator.process import Emulator
from tests.support.eia_client import query
from tests.support.waiting import WAIT_S

# Headers of the transfer, random for each request, or of a proxy's cache; not of the server.
_TRANSFER = {"content-length", "transfer-encoding", "content-encoding", "expires", "connection"}


def shape(value: Any) -> Any:
    """Return keys in order and types; of a list, the distinct shapes of its items."""
    if isinstance(value, dict):
        return [(key, shape(item)) for key, item in value.items()]
    if isinstance(value, list):
        return ["list", *sorted({json.dumps(shape(item)) for item in value})]
    return type(value).__name__


def bodies(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return (file name, body) of each recorded response with rows."""
    found = []
    for path in sorted((folder / "eia-responses").glob("*.json")):
        body = json.loads(path.read_text())
        body = body.get("api_response", body)
        if isinstance(body.get("response"), dict):
            found.append((path.name, body))
    return found


def flat(params: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the query whose echo is `params`."""
    pairs: list[tuple[str, str]] = []
    for name, value in params.items():
        if name == "data":
            pairs += [(f"data[{i}]", item) for i, item in enumerate(value)]
        elif name == "facets":
            pairs += [(f"facets[{facet}][]", item) for facet, items in value.items() for item in items]
        elif name == "sort":
            pairs += [(f"sort[{i}][{key}]", text) for i, item in enumerate(value) for key, text in item.items()]
        else:
            pairs.append((name, value))
    return pairs


def test_pages_match_recorded_keys_order_and_types(emulator: Emulator, recorded: Path) -> None:
    compared = 0
    for name, body in bodies(recorded):
        response = requests.get(
            emulator.url + body["request"]["command"], params=flat(body["request"]["params"]), timeout=WAIT_S
        )
        ours = response.json()
        assert ours["request"] == body["request"], name
        assert list(ours) == list(body), name  # `warnings` where EIA warns, and only there
        assert ours.get("warnings") == body.get("warnings"), name
        assert {key for row in ours["response"]["data"] for key in row} == set(body["response"]["data"][0]), name
        assert list(ours["response"]["data"][0]) == list(body["response"]["data"][0]), name
        for part in ("total", "dateFormat", "frequency", "description"):
            assert type(ours["response"][part]) is type(body["response"][part]), (name, part)
        assert ours["response"]["dateFormat"] == body["response"]["dateFormat"]
        assert ours["response"]["description"].startswith(body["response"]["description"])
        assert ours["apiVersion"] == body["apiVersion"]
        first, last = (rows[0] for rows in (ours["response"]["data"], body["response"]["data"]))
        for key in set(first) - {"value", "fueltype", "type-name"}:
            assert first[key] == last[key], (name, key)
        compared += 1
    assert compared >= 10


def test_bytes_around_the_rows_match_the_recording(emulator: Emulator, recorded: Path) -> None:
    theirs = (recorded / "eia-responses" / "eia_oregon_demand_0_200.json").read_text()
    params = flat(json.loads(theirs)["request"]["params"])
    ours = requests.get(f"{emulator.url}/v2/electricity/rto/region-data/data/", params=params, timeout=WAIT_S).text
    blank = [re.sub(r'"value":("[-\d]+"|null)|"total":"\d+"', '"…"', text) for text in (ours, theirs)]
    note = blank[0][blank[0].index("Grid Monitor") + len("Grid Monitor") : blank[0].index('"},"request"')]
    assert "SYNTHETIC" in note
    assert blank[0].replace(note, "", 1)[:180] == blank[1][:180]
    assert blank[0].replace(note, "", 1)[-700:] == blank[1][-700:]


def test_error_bodies_match_the_recorded_bytes(recorded: Path) -> None:
    folder = recorded / "eia-responses"
    with Emulator("--keys", "good", keyless=False) as emulator:
        data = f"{emulator.url}/v2/electricity/rto/region-data/data/"
        refused = requests.get(data, headers={"X-Api-Key": "bad"}, timeout=WAIT_S)
        missing = requests.get(data, timeout=WAIT_S)
        unknown = requests.get(f"{emulator.url}/v2/electricity/wholesale-prices/data/?api_key=good", timeout=WAIT_S)
        assert requests.get(data, params=query(api_key="good"), timeout=WAIT_S).status_code == 200
        wrong = requests.get(data, params={"api_key": "good", "frequency": "daily"}, timeout=WAIT_S)
    assert refused.status_code == 403
    assert refused.content == (folder / "eia_collector_demand_0_403.json").read_bytes()
    assert (missing.status_code, missing.json()["error"]["code"]) == (403, "API_KEY_MISSING")
    assert wrong.status_code == 400
    assert unknown.status_code == 500
    assert unknown.content == (folder / "eia_oregon_comprehensive_2_500.json").read_bytes()


def test_response_has_every_recorded_header(emulator: Emulator, recorded: Path) -> None:
    text = (recorded / "eia-responses" / "cassettes" / "eia_oregon_demand.yaml").read_text()
    recorded_headers = text[text.rindex("    headers:\n") : text.rindex("    status:")]
    names = {name.lower() for name in re.findall(r"^      ([A-Za-z-]+):$", recorded_headers, re.M)}
    uri = urlsplit(re.search(r"uri: (\S+)", text)[1])  # type: ignore[index]
    response = requests.get(emulator.url + uri.path, params=parse_qsl(uri.query), timeout=WAIT_S)
    assert len(names) > 15
    assert names - _TRANSFER <= {name.lower() for name in response.headers}
    assert response.headers["X-Emulator-World"] == "synthetic"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"frequency": "daily"}, "daily"),
        ({"frequency": "local-hourly"}, "local-hourly"),
        ({"data[0]": "price"}, "price"),
        ({"facets[fuel][]": "SUN"}, "fuel"),
        ({"start": "yesterday"}, "yesterday"),
        ({"start": "2024-02-30T00"}, "2024-02-30"),
        ({"offset": "-1"}, "-1"),
        ({"length": "all"}, "all"),
        ({"sort[0][column]": "colour"}, "colour"),
        ({"sort[0][direction]": "up"}, "up"),
    ],
)
def test_wrong_parameter_is_named_with_code_400(emulator: Emulator, wrong: dict[str, str], named: str) -> None:
    url = f"{emulator.url}/v2/electricity/rto/region-data/data/"
    response = requests.get(url, params={"sort[0][column]": "period", **wrong}, timeout=WAIT_S)
    assert response.status_code == 400
    assert response.json()["code"] == 400
    assert named in response.json()["error"]


def test_metadata_and_facets_match_the_recorded_catalogue(emulator: Emulator, recorded: Path) -> None:
    base = f"{emulator.url}/v2/electricity/rto/fuel-type-data"
    response = requests.get(base, timeout=WAIT_S).json()["response"]
    routes = json.loads((recorded / "eia-catalog" / "rto_routes.json").read_text())
    theirs = next(route for route in routes if route["id"] == "fuel-type-data")
    assert response["name"] == theirs["name"]
    assert response["facets"] == json.loads(theirs["facets"])
    assert response["data"]["value"]["units"] == "megawatthours"
    catalog = (recorded / "eia-catalog" / "rto_facet_values.csv").read_text()
    facets = requests.get(f"{base}/facet/fueltype/", timeout=WAIT_S).json()["response"]
    assert facets["totalFacets"] == len(facets["facets"]) > 8
    for facet in facets["facets"]:
        assert f"fuel-type-data/data,fueltype,{facet['id']},{facet['name']}" in catalog
