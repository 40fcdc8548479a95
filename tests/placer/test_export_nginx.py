"""The maps for nginx in nginx itself: it takes them, and sends requests where they belong."""

import re
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from placer.export.exporting import export_plan
from placer.export.fleet_table import fleet_table
from placer.export.header_value import header_value
from placer.export.options import ExportOptions
from placer.plan_document import Plan
from tests.placer.exported import AWKWARD, divided_plan, plan_of, planned

NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
pytestmark = [
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
    pytest.mark.no_cover,
]


def _configure(folder: Path, plan: Plan, options: ExportOptions) -> Path:
    """Write a configuration that includes an export, with a server in the place of each replica that says its name."""
    for name, text in export_plan(plan, formats=["nginx"], options=options)["nginx"].items():
        (folder / name).write_text(text, encoding="utf-8")
    replicas = "".join(
        f"server {{ listen {row.host}:{row.port}; client_max_body_size 0;"
        f' location / {{ return 200 "{row.resource}"; }} }}\n'
        for row in fleet_table(plan, options).rows
    )
    paths = "".join(f"{kind}_temp_path {folder / kind};\n" for kind in ("client_body", "proxy"))
    unused = "".join(f"{kind}_temp_path {folder / kind};\n" for kind in ("fastcgi", "uwsgi", "scgi"))
    main = folder / "nginx.conf"
    main.write_text(
        f"daemon off; master_process off; pid {folder / 'pid'}; error_log stderr;\nevents {{}}\n"
        f"http {{ access_log off;\n{paths}{unused}include maps.conf;\ninclude server.conf;\n{replicas}}}\n",
        encoding="utf-8",
    )
    return main


def _check(main: Path) -> str:
    """Return what nginx says of a configuration that it takes."""
    command = [str(NGINX), "-t", "-p", str(main.parent), "-c", str(main)]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stderr


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [own.getsockname()[1] for own in sockets]
    for own in sockets:
        own.close()
    return ports


@contextmanager
def _running(main: Path, port: int) -> Iterator[HTTPConnection]:
    """Yield a connection to nginx, which is stopped at the end."""
    command = [str(NGINX), "-p", str(main.parent), "-c", str(main)]
    with (main.parent / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                connection.connect()
                break
            except ConnectionRefusedError:
                assert process.poll() is None, (main.parent / "log").read_text(encoding="utf-8")
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield connection
    finally:
        connection.close()
        process.terminate()
        process.wait(timeout=20)


def _ask(connection: HTTPConnection, value: str | None) -> tuple[int, str]:
    headers = {} if value is None else {"X-Model": value}
    connection.request("POST", "/v1/completions", body=b"{}", headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def _block_of_ports(count: int) -> int:
    """Return the first of `count` ports in a row that are free now."""
    for first in _free_ports(20):
        try:
            sockets = [socket.create_server(("127.0.0.1", first + number)) for number in range(count)]
        except OSError:
            continue
        for own in sockets:
            own.close()
        return first
    pytest.skip("there are no free ports in a row")


def test_every_adapter_reaches_its_replica_whatever_it_is_called(tmp_path: Path) -> None:
    """Also names that differ in case only, and those that mean something to nginx; nobody else is served."""
    plan = plan_of([planned("gpu-0", AWKWARD[::2]), planned("gpu-1", AWKWARD[1::2])])
    (router_port,) = _free_ports(1)
    options = ExportOptions(port=_block_of_ports(2), router_port=router_port)
    with _running(_configure(tmp_path, plan, options), router_port) as connection:
        found = {name: _ask(connection, header_value(name)) for name in AWKWARD}
        refused = [_ask(connection, value)[0] for value in (None, "nobody", "plain-11", "~.*")]
    expected = {name: (200, f"vllm-gpu-{number % 2}") for number, name in enumerate(AWKWARD)}
    assert found == expected
    assert refused == [404] * 4


def test_a_large_prompt_reaches_its_replica(tmp_path: Path) -> None:
    """By itself, nginx refuses bodies of more than 1 MiB unless it is told otherwise."""
    (router_port,) = _free_ports(1)
    options = ExportOptions(port=_block_of_ports(1), router_port=router_port)
    with _running(_configure(tmp_path, plan_of([planned("gpu-0", ["a"])]), options), router_port) as connection:
        connection.request("POST", "/v1/completions", body=b"x" * (2 << 20), headers={"X-Model": "a"})
        assert connection.getresponse().status == 200


def test_a_divided_adapter_is_divided(tmp_path: Path) -> None:
    """By the shares of the plan; 1,000 requests are within five standard deviations."""
    (router_port,) = _free_ports(1)
    options = ExportOptions(port=_block_of_ports(3), router_port=router_port)
    with _running(_configure(tmp_path, divided_plan(), options), router_port) as connection:
        found = Counter(_ask(connection, "big") for _ in range(1000))
    assert set(found) == {(200, "vllm-gpu-0"), (200, "vllm-gpu-1")}
    assert abs(found[200, "vllm-gpu-0"] - 123.5) < 5 * 10.4


def test_nginx_takes_thousands_of_long_names(tmp_path: Path) -> None:
    """Its tables are large enough: it does not say that they should be larger."""
    names = [f"tenant-{number}-{'x' * 60}" for number in range(3000)]
    said = _check(_configure(tmp_path, plan_of([planned("gpu-0", names)]), ExportOptions()))
    assert not re.search("map_hash|warn|emerg", said)
