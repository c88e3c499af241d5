"""CAISO OASIS `SingleZip`: SLD_FCST, SLD_REN_FCST and ENE_SLRS as zipped CSV, and the error zip that comes under 200.

Served: `resultformat=6`, `version=1`, windows of at most 31 days; markets DAM and ACTUAL (forecasts), DAM and RTM
(ENE_SLRS, whose RTM rows are of five minutes and which has the three Caiso_Totals items only). Not served: the redirect
from http to https. Rows are unordered, as OASIS sends them.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

import numpy as np

from ingest.emulator.http.responses import ZIP, Answer
from ingest.emulator.worlds.base import VALUE, World
from ingest.emulator.worlds.weather import summer_time

ERRORS = {
    1000: "No data returned for the specified selection",
    1001: "Invalid Parameters of the given report name",
    1002: "Invalid datetime format, please use valid datetime format",
    1004: "Data can be requested for period of 31 days only",
}
_MARKETS = {"SLD_FCST": ("DAM", "ACTUAL"), "SLD_REN_FCST": ("DAM", "ACTUAL"), "ENE_SLRS": ("DAM", "RTM")}
_PACIFIC = -8
_AREAS = {"CA ISO-TAC": 1.0, "PGE-TAC": 0.44, "SCE-TAC": 0.46, "SDGE-TAC": 0.09, "VEA-TAC": 0.01}
_HUBS = {"Solar": {"NP15": 0.24, "SP15": 0.6, "ZP26": 0.16}, "Wind": {"NP15": 0.31, "SP15": 0.69}}
_HEADERS = {
    "SLD_FCST": "INTERVALSTARTTIME_GMT,INTERVALENDTIME_GMT,LOAD_TYPE,OPR_DT,OPR_HR,OPR_INTERVAL,MARKET_RUN_ID,TAC_AREA_NAME,"
    "LABEL,XML_DATA_ITEM,POS,MW,EXECUTION_TYPE,GROUP",
    "SLD_REN_FCST": "OPR_DT,OPR_HR,OPR_INTERVAL,INTERVALSTARTTIME_GMT,INTERVALENDTIME_GMT,TRADING_HUB,RENEWABLE_TYPE,LABEL,"
    "XML_DATA_ITEM,MW,MARKET_RUN_ID,GROUP",
    "ENE_SLRS": "INTERVALSTARTTIME_GMT,INTERVALENDTIME_GMT,SLRS_TYPE,OPR_DT,OPR_HR,OPR_INTERVAL,MARKET_RUN_ID,TAC_ZONE_NAME,"
    "SCHEDULE,XML_DATA_ITEM,POS,MW,GROUP",
}


@dataclass(frozen=True)
class Ask:
    """A checked request: the hours that begin at `start`…`end` − 1 (hours since 1970-01-01T00 UTC)."""

    query: str
    market: str
    start: int
    end: int

    @property
    def page(self) -> str:
        """Its name in the counts."""
        return f"{self.query}/{self.market}/{hour_text(self.start)}..{hour_text(self.end)}"


def hour_text(hour: int) -> str:
    """Hours since 1970-01-01T00 UTC → `YYYY-MM-DDTHH`."""
    return str(np.datetime64(hour, "h"))


def parse(query: str) -> Ask | int:
    """The query string → a checked request, or OASIS's error code."""
    params = {name: values[-1] for name, values in parse_qs(query).items()}
    name = params.get("queryname", "")
    market = params.get("market_run_id", "DAM")
    if name not in _MARKETS or market not in _MARKETS[name] or params.get("resultformat") != "6":
        return 1001
    if params.get("version") != "1":
        return 1001
    try:
        start, end = (datetime.strptime(params[key], "%Y%m%dT%H:%M-0000") for key in ("startdatetime", "enddatetime"))
    except (KeyError, ValueError):
        return 1002
    if end <= start:
        return 1002
    if end - start > timedelta(days=31):
        return 1004
    low, high = (moment.replace(tzinfo=UTC).timestamp() / 3600 for moment in (start, end))
    return Ask(name, market, int(np.ceil(low)), int(np.ceil(high)))


def error_zip(code: int, time: str) -> Answer:
    """INVALID_REQUEST.xml.zip, as OASIS sends it under 200. `time`: ISO, the moment of the answer."""
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<m:OASISReport xmlns:m="http://www.caiso.com/soa/OASISReport_v1.xsd">\n<m:MessageHeader>\n'
        f"\t<m:TimeDate>{time.removesuffix('Z')}.000Z</m:TimeDate>\n\t<m:Source>OASIS</m:Source>\n"
        "\t<m:Version>v20131201</m:Version>\n</m:MessageHeader>\n<m:MessagePayload>\n<m:RTO>\n<m:name>CAISO</m:name>\n"
        "<m:DISCLAIMER_ITEM>\n<m:DISCLAIMER>The contents of these pages are subject to change without notice. Decisions "
        "based on information contained within the California ISO's web site are the visitor's sole responsibility."
        f"</m:DISCLAIMER>\n</m:DISCLAIMER_ITEM>\n<m:ERROR>\n<m:ERR_CODE>{code}</m:ERR_CODE>\n"
        f"<m:ERR_DESC>{ERRORS.get(code, 'Error')}</m:ERR_DESC>\n</m:ERROR>\n\n</m:RTO>\n</m:MessagePayload>\n"
        "</m:OASISReport>"
    )
    return _zip("INVALID_REQUEST.xml", "INVALID_REQUEST.xml.zip", body, 0)


def answer(world: World, ask: Ask, now: int) -> Answer:
    """The zip of one request; OASIS's error 1000 when the world has none of its hours."""
    rows = {"SLD_FCST": _demand, "SLD_REN_FCST": _renewables, "ENE_SLRS": _schedules}[ask.query](world, ask, now)
    if not rows:
        return error_zip(1000, f"{hour_text(now)}:00:00Z")
    np.random.default_rng(zlib.crc32(ask.page.encode())).shuffle(rows)
    utc = np.array([ask.start, ask.end - 1]).astype("datetime64[h]")
    first, last = (str(day).replace("-", "") for day in (utc + _offset(utc)).astype("datetime64[D]"))
    name = f"{first}_{last}_{ask.query}_{ask.market}_{last}_12_00_00_v1"
    return _zip(f"{name}.csv", f"{name}.zip", "\n".join((_HEADERS[ask.query], *rows, "")), len(rows))


def _zip(inside: str, name: str, text: str, rows: int) -> Answer:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        info = zipfile.ZipInfo(inside)  # dated 1980: the same text is always the same bytes
        info.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(info, text, compresslevel=1)
    headers = (("Content-Disposition", f"inline; filename={name};"),)
    return Answer(200, packed.getvalue(), ZIP, headers=headers, rows=rows)


def _offset(utc: np.ndarray) -> np.ndarray:
    return _PACIFIC + summer_time(utc, _PACIFIC).astype(np.int64)


def _hours(world: World, route: str, code: str, ask: Ask, now: int) -> dict[int, float]:
    """Beginning of hour → MWh for CISO, where the world has a value."""
    block = world.block(route, "CISO", ask.start + 1, ask.end, now)  # hour-ending
    if block is None or code not in block.codes:
        return {}
    column = block.codes.index(code)
    there = np.flatnonzero(block.state[:, column] == VALUE)
    return dict(zip((there + block.first - 1).tolist(), block.values[there, column].tolist(), strict=True))


@dataclass(frozen=True)
class _When:
    start: str
    end: str
    day: str  # Pacific
    hour: int  # of the operating day, from 1


def _whens(hours: list[int]) -> dict[int, _When]:
    """Beginning of hour → its texts."""
    utc = np.array(hours).astype("datetime64[h]")
    days = (utc + _offset(utc)).astype("datetime64[D]")
    midnights = days.astype("datetime64[h]") - _PACIFIC
    midnights -= summer_time(midnights, _PACIFIC).astype("timedelta64[h]")
    numbers = (utc - midnights).astype(np.int64) + 1
    return {
        hour: _When(f"{hour_text(hour)}:00:00-00:00", f"{hour_text(hour + 1)}:00:00-00:00", str(day), int(number))
        for hour, day, number in zip(hours, days, numbers, strict=True)
    }


def _demand(world: World, ask: Ask, now: int) -> list[str]:
    ahead = ask.market == "DAM"
    label, item, kind = (
        ("Demand Forecast Day Ahead", "SYS_FCST_DA_MW", "DF")
        if ahead
        else ("Total Actual Hourly Integrated Load", "SYS_FCST_ACT_MW", "D")
    )
    hours = _hours(world, "region-data", kind, ask, now)
    when = _whens(list(hours))
    return [
        f"{w.start},{w.end},0,{w.day},{w.hour},0,{ask.market},{area},{label},{item},0.0,{hours[h] * share:.2f},{ask.market},{g}"
        for g, (area, share) in enumerate(_AREAS.items(), 1)
        for h, w in when.items()
    ]


def _renewables(world: World, ask: Ask, now: int) -> list[str]:
    ahead = ask.market == "DAM"
    label, item = (
        ("Renewable Forecast Day Ahead", "RENEW_FCST_DA_MW")
        if ahead
        else ("Total Actual Hourly Renewable Generation", "RENEW_FCST_ACT_MW")
    )
    rows: list[str] = []
    group = 0
    for kind, code in (("Solar", "SUN"), ("Wind", "WND")):
        hours = _hours(world, "fuel-type-data", code, ask, now)
        when = _whens(list(hours))
        for hub, share in _HUBS[kind].items():
            group += 1
            for h, w in when.items():
                miss = 0.08 * np.sin(h / 17.3) + 0.05 * np.sin(h / 5.1 + 1) if ahead else 0.0
                place = f"{w.day},{w.hour},0,{w.start},{w.end},{hub},{kind},{label},{item}"
                rows.append(f"{place},{hours[h] * share * (1 + miss):.2f},{ask.market},{group}")
    return rows


def _schedules(world: World, ask: Ask, now: int) -> list[str]:
    flows = [_hours(world, "interchange-data", code, ask, now) for code in world.codes("interchange-data")]
    flows = [flow for flow in flows if flow]
    totals = {
        ("Export", "ISO_TOT_EXP_MW", 1): _sum(flows, 1),
        ("Import", "ISO_TOT_IMP_MW", 2): _sum(flows, -1),
        ("Generation", "ISO_TOT_GEN_MW", 3): _hours(world, "region-data", "NG", ask, now),
    }
    rows: list[str] = []
    for (schedule, item, position), hours in totals.items():
        when = _whens(list(hours))
        for h, w in when.items():
            tail = f"{ask.market},Caiso_Totals,{schedule},{item},{position}"
            if ask.market == "DAM":
                rows.append(f"{w.start},{w.end},ALL,{w.day},{w.hour},0,{tail},{hours[h]:.2f},{position}")
                continue
            clock = w.start[:13]
            for step in range(12):  # of five minutes; a small ripple whose mean over the hour is zero
                begins = f"{clock}:{5 * step:02d}:00-00:00"
                ends = f"{clock}:{5 * step + 5:02d}:00-00:00" if step < 11 else w.end
                power = hours[h] * (1 + 0.004 * np.sin(2 * np.pi * step / 12 + h))
                rows.append(f"{begins},{ends},ALL,{w.day},{w.hour},{step + 1},{tail},{power:.2f},{position}")
    return rows


def _sum(flows: list[dict[int, float]], sign: int) -> dict[int, float]:
    hours = set.intersection(*(set(flow) for flow in flows)) if flows else set()
    return {hour: sum(max(sign * flow[hour], 0.0) for flow in flows) for hour in sorted(hours)}
