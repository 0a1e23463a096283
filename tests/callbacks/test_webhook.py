"""Alerts over HTTP to a server of this machine: what arrives, what is tried again, and that nobody waits."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from ser_lightning.callbacks import alerts
from ser_lightning.callbacks.alerts import WebhookCallback, alert
from ser_lightning.errors import UserError


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(alerts, "BACKOFF_S", 0.0)
    monkeypatch.setattr(alerts, "TIMEOUT_S", 20)
    got, statuses, gate = [], [], threading.Event()
    gate.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            gate.wait(20)
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(statuses.pop(0) if statuses else 204)
            self.end_headers()

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{http.server_port}/", got=got, statuses=statuses, gate=gate)
    gate.set()
    http.shutdown()


def trainer_of(callback, is_global_zero=True):
    return SimpleNamespace(is_global_zero=is_global_zero, callbacks=[callback], loggers=[], default_root_dir="runs/x")


def test_an_alert_arrives(server):
    callback = WebhookCallback(server.url)
    with pytest.warns(UserWarning, match="a: b"):
        alert(trainer_of(callback), "a", "b")
    callback.teardown(trainer_of(callback), None, "fit")
    assert server.got == [{"title": "a", "text": "b", "run": "runs/x"}]


def test_an_alert_gets_away_before_a_crash_ends_the_process(server):
    callback = WebhookCallback(server.url)
    callback.send(trainer_of(callback), "a", "b")
    callback.on_exception(trainer_of(callback), None, KeyError("crash"))
    assert len(server.got) == 1


def test_a_server_in_trouble_is_asked_again(server):
    server.statuses[:] = [503, 429]
    callback = WebhookCallback(server.url)
    callback.send(trainer_of(callback), "a", "b")
    callback.teardown(trainer_of(callback), None, "fit")
    assert len(server.got) == 3


@pytest.mark.parametrize(("statuses", "said"), [([503] * 3, "MaxRetryError"), ([404], "status 404")])
def test_what_is_not_sent_is_said_without_the_address(server, statuses, said):
    server.statuses[:] = statuses
    callback = WebhookCallback(server.url)
    with pytest.warns(UserWarning, match=rf"webhook: an alert was not sent \({said}\); training goes on") as warned:  # noqa: PT031
        callback.send(trainer_of(callback), "a", "b")  # a quick answer is reported at once, a slow one at the end
        callback.teardown(trainer_of(callback), None, "fit")
    assert not any("127.0.0.1" in str(one.message) for one in warned)


def test_nobody_waits_for_a_server_that_does_not_answer(server, monkeypatch):
    server.gate.clear()  # until this test is over no request is answered
    monkeypatch.setattr(alerts, "TIMEOUT_S", 0.2)
    callback = WebhookCallback(server.url)
    for _ in range(2):
        callback.send(trainer_of(callback), "a", "b")
    with pytest.warns(UserWarning, match="an alert was not sent"):
        callback.teardown(trainer_of(callback), None, "fit")
    assert server.got == []


def test_other_ranks_send_nothing(server):
    callback = WebhookCallback(server.url)
    callback.send(trainer_of(callback, is_global_zero=False), "a", "b")
    callback.teardown(trainer_of(callback), None, "fit")
    assert server.got == []


@pytest.mark.parametrize("url", ["chat.example.org", "", "$NOT_SET_ANYWHERE"])
def test_an_address_that_is_none_is_one_line(url):
    with pytest.raises(UserError, match=r"^webhook\.url: got "):
        WebhookCallback(url)
