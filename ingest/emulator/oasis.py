"""CAISO OASIS `SingleZip`: SLD_FCST, SLD_REN_FCST, ENE_SLRS and PRC_LMP as zipped CSV, and the error zip that comes under 200.

It serves `resultformat=6`, `version=1` (PRC_LMP: 12), windows of at most 31 days; markets DAM and ACTUAL (forecasts), DAM and RTM
(ENE_SLRS, which has the three Caiso_Totals items only, and five-minute rows in RTM), DAM (PRC_LMP, for the nodes asked for). It does not serve the redirect from
http to https. Rows are unordered, as OASIS sends them.
"""

import io
import zipfile
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

import numpy as np

from ingest.emulator.faults.plan import Target
from ingest.emulator.http.responses import ZIP, Response
from ingest.emulator.worlds.base import World
from ingest.emulator.worlds.weather import summer_time

ERRORS = {
    1000: "No data returned for the specified selection",
    1001: "Invalid Parameters of the given report name",
    1002: "Invalid datetime format, please use valid datetime format",
    1004: "Data can be requested for period of 31 days only",
}
_LABELS = {  # (LABEL, XML_DATA_ITEM) of each report and market; ENE_SLRS has no label, and an item for each schedule
    ("SLD_FCST", "DAM"): ("Demand Forecast Day Ahead", "SYS_FCST_DA_MW"),
    ("SLD_FCST", "ACTUAL"): ("Total Actual Hourly Integrated Load", "SYS_FCST_ACT_MW"),
    ("SLD_REN_FCST", "DAM"): ("Renewable Forecast Day Ahead", "RENEW_FCST_DA_MW"),
    ("SLD_REN_FCST", "ACTUAL"): ("Total Actual Hourly Renewable Generation", "RENEW_FCST_ACT_MW"),
    ("ENE_SLRS", "DAM"): ("", ""),
    ("ENE_SLRS", "RTM"): ("", ""),
    ("PRC_LMP", "DAM"): ("", ""),
}
_PACIFIC = -8
_AREAS = {"CA ISO-TAC": 1.0, "PGE-TAC": 0.44, "SCE-TAC": 0.46, "SDGE-TAC": 0.09, "VEA-TAC": 0.01}
_HUBS = {"Solar": {"NP15": 0.24, "SP15": 0.6, "ZP26": 0.16}, "Wind": {"NP15": 0.31, "SP15": 0.69}}
_VERSIONS = {"PRC_LMP": "12"}  # of every other report: 1
_PRICES = {"LMP": "LMP_PRC", "MCE": "LMP_ENE_PRC", "MCC": "LMP_CONG_PRC", "MCL": "LMP_LOSS_PRC", "MGHG": "LMP_GHG_PRC"}
_HEADERS = {
    "SLD_FCST": "INTERVALSTARTTIME_GMT,INTERVALENDTIME_GMT,LOAD_TYPE,OPR_DT,OPR_HR,OPR_INTERVAL,MARKET_RUN_ID,TAC_AREA_NAME,"
    "LABEL,XML_DATA_ITEM,POS,MW,EXECUTION_TYPE,GROUP",
    "SLD_REN_FCST": "OPR_DT,OPR_HR,OPR_INTERVAL,INTERVALSTARTTIME_GMT,INTERVALENDTIME_GMT,TRADING_HUB,RENEWABLE_TYPE,LABEL,"
    "XML_DATA_ITEM,MW,MARKET_RUN_ID,GROUP",
    "ENE_SLRS": "INTERVALSTARTTIME_GMT,INTERVALENDTIME_GMT,SLRS_TYPE,OPR_DT,OPR_HR,OPR_INTERVAL,MARKET_RUN_ID,TAC_ZONE_NAME,"
    "SCHEDULE,XML_DATA_ITEM,POS,MW,GROUP",
    "PRC_LMP": "INTERVALSTARTTIME_GMT,INTERVALENDTIME_GMT,OPR_DT,OPR_HR,OPR_INTERVAL,NODE_ID_XML,NODE_ID,NODE,MARKET_RUN_ID,LMP_TYPE,"
    "XML_DATA_ITEM,PNODE_RESMRID,GRP_TYPE,POS,MW,GROUP",
}


@dataclass(frozen=True)
class OasisRequest:
    """Hold a checked request for the hours that begin at `start`…`end` − 1 (hours since 1970-01-01T00 UTC)."""

    report: str
    market: str
    start: int
    end: int
    nodes: tuple[str, ...] = ()  # of prices

    @property
    def page(self) -> str:
        """Name of the page in the counts."""
        return f"{self.report}/{self.market}/{hour_text(self.start)}..{hour_text(self.end)}"

    @property
    def target(self) -> Target:
        """The page as a fault rule matches it."""
        return Target(self.report, "CISO", hour_text(self.start), hour_text(self.end))


def hour_text(hour: int) -> str:
    """Return hours since 1970-01-01T00 UTC as `YYYY-MM-DDTHH`."""
    return str(np.datetime64(hour, "h"))


def parse(query: str) -> OasisRequest | int:
    """Return the checked request of a query string, or OASIS's error code."""
    params = {name: values[-1] for name, values in parse_qs(query).items()}
    report, market = params.get("queryname", ""), params.get("market_run_id", "DAM")
    form = params.get("resultformat"), params.get("version")
    nodes = tuple(node for node in params.get("node", "").split(",") if node)
    if (
        (report, market) not in _LABELS
        or form != ("6", _VERSIONS.get(report, "1"))
        or (report == "PRC_LMP" and not nodes)
    ):
        return 1001
    try:
        start, end = (
            datetime.strptime(params[key], "%Y%m%dT%H:%M-0000").replace(tzinfo=UTC)
            for key in ("startdatetime", "enddatetime")
        )
    except (KeyError, ValueError):
        return 1002
    if end <= start or end - start > timedelta(days=31):
        return 1002 if end <= start else 1004
    low, high = (int(np.ceil(moment.timestamp() / 3600)) for moment in (start, end))
    return OasisRequest(report, market, low, high, nodes)


def error_zip(code: int, time: str) -> Response:
    """Return INVALID_REQUEST.xml.zip, as OASIS sends it under 200. `time` is the time of the response, ISO."""
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


def respond(world: World, request: OasisRequest, now: int) -> Response:
    """Return the zip of one request; OASIS's error 1000 when the world has none of its hours."""
    reports = {"SLD_FCST": _demand, "SLD_REN_FCST": _renewables, "ENE_SLRS": _schedules, "PRC_LMP": _prices}
    rows = reports[request.report](world, request, now)
    if not rows:
        return error_zip(1000, f"{hour_text(now)}:00:00Z")
    np.random.default_rng(zlib.crc32(request.page.encode())).shuffle(rows)
    utc = np.array([request.start, request.end - 1]).astype("datetime64[h]")
    first, last = (str(day).replace("-", "") for day in (utc + _offset(utc)).astype("datetime64[D]"))
    name = f"{first}_{last}_{request.report}_{request.market}_{last}_12_00_00_v1"
    return _zip(f"{name}.csv", f"{name}.zip", "\n".join((_HEADERS[request.report], *rows, "")), len(rows))


def _zip(inside: str, name: str, text: str, rows: int) -> Response:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        info = zipfile.ZipInfo(inside)  # dated 1980: the same text is always the same bytes
        info.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(info, text, compresslevel=1)
    headers = (("Content-Disposition", f"inline; filename={name};"),)
    return Response(200, packed.getvalue(), ZIP, headers=headers, rows=rows)


def _offset(utc: np.ndarray) -> np.ndarray:
    return _PACIFIC + summer_time(utc, _PACIFIC).astype(np.int64)


def _hours(world: World, route: str, code: str, request: OasisRequest, now: int) -> dict[int, float]:
    """Return beginning of hour → MWh for CISO, where the world has a value."""
    block = world.block(route, "CISO", request.start + 1, min(request.end, now), now)  # hour-ending
    return {hour - 1: value for hour, value in block.series(code).items()} if block else {}


@dataclass(frozen=True)
class _HourTexts:
    start: str
    end: str
    day: str  # Pacific
    hour: int  # of the operating day, from 1


def _texts(hours: list[int]) -> dict[int, _HourTexts]:
    """Return beginning of hour → its texts."""
    utc = np.array(hours).astype("datetime64[h]")
    days = (utc + _offset(utc)).astype("datetime64[D]")
    midnights = days.astype("datetime64[h]") - _PACIFIC
    midnights -= summer_time(midnights, _PACIFIC).astype("timedelta64[h]")
    numbers = (utc - midnights).astype(np.int64) + 1
    return {
        hour: _HourTexts(f"{hour_text(hour)}:00:00-00:00", f"{hour_text(hour + 1)}:00:00-00:00", str(day), int(number))
        for hour, day, number in zip(hours, days, numbers, strict=True)
    }


def _demand(world: World, request: OasisRequest, now: int) -> list[str]:
    market = request.market
    labels = ",".join(_LABELS[request.report, market])
    hours = _hours(world, "region-data", "DF" if market == "DAM" else "D", request, now)
    texts = _texts(list(hours))
    return [
        f"{t.start},{t.end},0,{t.day},{t.hour},0,{market},{area},{labels},0.0,{hours[h] * share:.2f},{market},{group}"
        for group, (area, share) in enumerate(_AREAS.items(), 1)
        for h, t in texts.items()
    ]


def _renewables(world: World, request: OasisRequest, now: int) -> list[str]:
    labels = ",".join(_LABELS[request.report, request.market])
    rows: list[str] = []
    hubs = [(kind, hub, share) for kind, shares in _HUBS.items() for hub, share in shares.items()]
    for group, (kind, hub, share) in enumerate(hubs, 1):
        hours = _hours(world, "fuel-type-data", {"Solar": "SUN", "Wind": "WND"}[kind], request, now)
        for h, t in _texts(list(hours)).items():
            miss = 0.08 * np.sin(h / 17.3) + 0.05 * np.sin(h / 5.1 + 1) if request.market == "DAM" else 0.0
            place = f"{t.day},{t.hour},0,{t.start},{t.end},{hub},{kind},{labels}"
            rows.append(f"{place},{hours[h] * share * (1 + miss):.2f},{request.market},{group}")
    return rows


def _schedules(world: World, request: OasisRequest, now: int) -> list[str]:
    flows = [_hours(world, "interchange-data", code, request, now) for code in world.codes("interchange-data")]
    flows = [flow for flow in flows if flow]
    totals = {
        ("Export", "ISO_TOT_EXP_MW", 1): _sum(flows, 1),
        ("Import", "ISO_TOT_IMP_MW", 2): _sum(flows, -1),
        ("Generation", "ISO_TOT_GEN_MW", 3): _hours(world, "region-data", "NG", request, now),
    }
    rows: list[str] = []
    for (schedule, item, position), hours in totals.items():
        tail = f"{request.market},Caiso_Totals,{schedule},{item},{position}"
        for h, t in _texts(list(hours)).items():
            if request.market == "DAM":
                rows.append(f"{t.start},{t.end},ALL,{t.day},{t.hour},0,{tail},{hours[h]:.2f},{position}")
                continue
            for step in range(12):  # of five minutes; a small ripple whose mean over the hour is zero
                begins = f"{t.start[:13]}:{5 * step:02d}:00-00:00"
                ends = f"{t.start[:13]}:{5 * step + 5:02d}:00-00:00" if step < 11 else t.end
                power = hours[h] * (1 + 0.004 * np.sin(2 * np.pi * step / 12 + h))
                rows.append(f"{begins},{ends},ALL,{t.day},{t.hour},{step + 1},{tail},{power:.2f},{position}")
    return rows


def _prices(world: World, request: OasisRequest, now: int) -> list[str]:
    """Return day-ahead prices and their components: the energy price rises with the forecast of demand."""
    hours = _hours(world, "region-data", "DF", request, now)
    texts = _texts(list(hours))
    rows: list[str] = []
    for place, node in enumerate(request.nodes):
        for h, t in texts.items():
            energy = round(6 + 42 * (hours[h] / 30_000) ** 2, 5)
            parts = {
                "MCE": energy,
                "MCC": round(0.4 * place * np.sin(h / 9.7), 5),
                "MCL": round(-0.01 * place * energy, 5),
                "MGHG": 0.0,
            }
            for group, (kind, item) in enumerate(_PRICES.items(), 1):
                price = parts[kind] if kind in parts else sum(parts.values())
                where = (
                    f"{t.start},{t.end},{t.day},{t.hour},0,{node},{node},{node},{request.market},{kind},{item},{node}"
                )
                rows.append(f"{where},ALL_APNODES,0,{price:.5f},{group}")
    return rows


def _sum(flows: list[dict[int, float]], sign: int) -> dict[int, float]:
    """Return beginning of hour → sum of the flows in one direction, for the hours that every flow has."""
    hours = set.intersection(*(set(flow) for flow in flows)) if flows else set()
    return {hour: sum(max(sign * flow[hour], 0) for flow in flows) for hour in sorted(hours)}
