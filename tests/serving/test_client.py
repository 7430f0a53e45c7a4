"""The gRPC and the REST client over real sockets, against a model server of ours and, where there is one, the real."""

import errno
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from statistics import NormalDist

import grpc
import numpy as np
import pytest
from scipy import special, stats

from serving import answers, deadlines
from serving import client as client_lib
from serving.client import (
    AnswerError,
    DeadlineError,
    GrpcClient,
    RefusedError,
    RestClient,
    ServingError,
    UnavailableError,
)
from serving.local import StatusError
from serving.rest_format import decimal
from tests.serving import raw_http, threshold_model
from tests.serving.model_server import ModelServer, wait_until

TRANSPORTS = ("grpc", "rest")
# Means 0, 0.25, 0.5, 0.75 and 1 of images of 2x2x1 pixels.
IMAGES = np.linspace(0, 1, 5, dtype=np.float32)[:, None, None, None] * np.ones((1, 2, 2, 1), np.float32)


@pytest.fixture(scope="module")
def threshold_saved_model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("served") / "saved_model"
    threshold_model.write(directory)
    return directory


@pytest.fixture(scope="module")
def shared_server(threshold_saved_model):
    with ModelServer(threshold_saved_model) as server:
        yield server


@pytest.fixture
def server(shared_server):
    """The module's server, without the faults and the requests of the last test."""
    shared_server.before, shared_server.change = lambda number: None, lambda outputs: outputs
    shared_server.raw = lambda body: body
    shared_server.count, shared_server.requests = 0, []
    return shared_server


def client_of(transport, server, model="classifier", **options):
    if transport == "grpc":
        return GrpcClient(server.grpc_address, model, **options)
    return RestClient(server.rest_url, model, **options)


@pytest.fixture(params=TRANSPORTS)
def client(request, server):
    return client_of(request.param, server)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    assert 20 < len(text) < 700
    return text


def test_certificates_by_hand(client):
    """n = 1000, alpha = 0.001: Hoeffding's margin is sqrt(ln 1000 / 2000) = sqrt(0.0034539) = 0.058770.

    Means 0 and 1 give p_lower = 0.941230, means 0.25 and 0.75 give 0.691230, and 0.5 gives 0.441230: abstain.
    """
    answer = client.certify(IMAGES)
    assert answer.predictions.tolist() == [0, 0, -1, 1, 1]
    np.testing.assert_allclose(answer.p_lower, [0.941230, 0.691230, 0.441230, 0.691230, 0.941230], atol=1e-6)
    radii = [0.25 * NormalDist().inv_cdf(p) for p in (0.941230, 0.691230)]
    np.testing.assert_allclose(answer.radii, [radii[0], radii[1], 0, radii[1], radii[0]], atol=1e-5)
    assert answer.votes.tolist() == [[1000, 0], [750, 250], [500, 500], [250, 750], [0, 1000]]
    assert (answer.seeds.shape, len(set(answer.seeds.ravel().tolist()))) == ((5, 2), 10)
    dtypes = [array.dtype.name for array in vars(answer).values()]
    assert dtypes == ["int64", "float32", "float64", "int64", "int64"]


def test_predictions_by_hand(client):
    answer = client.predict(IMAGES)
    assert answer.predictions.tolist() == [0, 0, -1, 1, 1]
    assert answer.p_values.tolist() == [1e-5, 1e-5, 0.5, 1e-5, 1e-5]
    assert answer.samples.tolist() == [100] * 5
    assert answer.seeds.shape == (5, 2)


def test_certify_custom_by_hand(server):
    """n = 100, alpha = 0.01: the margin is sqrt(ln 100 / 200) = sqrt(0.0230259) = 0.151743."""
    with client_of("grpc", server) as client:
        answer = client.certify_custom(IMAGES, n=100, alpha=0.01)
        np.testing.assert_allclose(answer.p_lower[[0, 1]], [0.848257, 0.598257], atol=1e-6)
        assert answer.votes.sum(axis=1).tolist() == [100] * 5
        # Left out, each is the export's: margins sqrt(ln 1000 / 200) = 0.185846 and sqrt(ln 100 / 2000) = 0.047985.
        assert client.certify_custom(IMAGES, n=100).p_lower[0] == pytest.approx(0.814154, abs=1e-6)
        assert client.certify_custom(IMAGES, alpha=0.01).p_lower[0] == pytest.approx(0.952015, abs=1e-6)
        assert client.certify_custom(IMAGES).p_lower[0] == pytest.approx(0.941230, abs=1e-6)


def test_certify_custom_over_rest_says_what_to_use(server):
    with pytest.raises(RefusedError, match="use GrpcClient") as error:
        client_of("rest", server).certify_custom(IMAGES, n=100)
    one_line(error)
    assert server.count == 0


@pytest.mark.parametrize("options", [{"n": 0}, {"n": 1.5}, {"n": True},
                                     {"n": 2**63}, {"alpha": 0.0}, {"alpha": 1.0}, {"alpha": math.nan},
                                     {"alpha": "0.1"}])  # fmt: skip
def test_bad_scalars_are_not_sent(server, options):
    with client_of("grpc", server) as client, pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        client.certify_custom(IMAGES, **options)
    assert server.count == 0


def test_the_server_sees_the_images_to_the_last_bit(client, server):
    images = np.random.default_rng(0).random((3, 2, 2, 1), dtype=np.float32)
    images.ravel()[:4] = [np.float32(1e-45), np.nextafter(np.float32(1), np.float32(0)), 0, 1]
    client.certify(images)
    ((_, inputs),) = server.requests
    assert inputs["images"].dtype == np.float32
    np.testing.assert_array_equal(inputs["images"].view(np.int32), images.view(np.int32))


def test_both_transports_bring_the_same_bits(server):
    """A radius must not grow on the way: the printed 0.7 is above the float32 that it stands for."""
    random = np.random.default_rng(0)
    count = 4000
    radii = np.concatenate([
        random.random(count // 2, dtype=np.float32),
        (random.integers(1, 4000, count // 2) / 1000).astype(np.float32),
    ])  # fmt: skip
    assert (radii.astype(np.float64) < [float(decimal(radius)) for radius in radii]).mean() > 0.2
    p_lower = special.ndtr(radii.astype(np.float64))  # at sigma = 1
    sent = {
        "predicted_class": np.zeros(count, np.int64), "radius": radii, "p_lower": p_lower,
        "votes": np.tile(np.array([[2**40, 0]]), (count, 1)), "seed": random.integers(0, 2**32, (count, 2)),
    }  # fmt: skip
    server.change = lambda outputs: sent
    images = np.zeros((count, 2, 2, 1), np.float32)
    for transport in TRANSPORTS:
        answer = client_of(transport, server).certify(images)
        np.testing.assert_array_equal(answer.radii.view(np.int32), radii.view(np.int32))
        np.testing.assert_array_equal(answer.p_lower.view(np.int64), p_lower.view(np.int64))
        np.testing.assert_array_equal(answer.seeds, sent["seed"])
        np.testing.assert_array_equal(answer.votes, sent["votes"])


BAD_IMAGES = {
    "masked": np.ma.masked_array(np.zeros((1, 2, 2, 1), np.float32), mask=True),
    "float64": IMAGES.astype(np.float64),
    "bytes": (IMAGES * 255).astype(np.uint8),
    "one image": IMAGES[0],
    "no channels": IMAGES[..., 0],
    "none": IMAGES[:0],
    "no pixels": IMAGES[:, :0],
    "NaN": np.where(IMAGES == 0.5, np.float32(np.nan), IMAGES),
    "infinite": np.where(IMAGES == 0.5, np.float32(np.inf), IMAGES),
    "0 to 255": IMAGES * 255,
    "negative": -IMAGES,
    "words": np.array([["a"]]),
    "other byte order": IMAGES.astype(">f4"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_are_not_sent(client, server, name):
    for ask in (client.certify, client.predict):
        with pytest.raises(ValueError, match=r"images must .* Received: ") as error:
            ask(BAD_IMAGES[name])
        one_line(error)
    assert server.count == 0


def test_a_refusal_says_what_the_server_said(client):
    with pytest.raises(RefusedError, match=r"refused .*(INVALID_ARGUMENT|HTTP 400)") as error:
        client.certify(np.zeros((1, 3, 3, 1), np.float32))
    assert "shape" in one_line(error)


def test_a_refusal_of_many_lines_is_told_in_one(client, server):
    def refuse(number):
        raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, "assertion\x1b[31m failed: [x]\n\t [[{{node Assert}}]]")

    server.before = refuse
    with pytest.raises(ServingError, match=r"assertion\[31m failed: \[x\]$") as error:
        client.certify(IMAGES)
    one_line(error)
    assert server.count == 1, "a refusal is final"


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("options", [{"model": "other"}, {"version": 9}, {"label": "canary"}])
def test_what_is_not_served_is_named(server, transport, options):
    with pytest.raises(RefusedError, match="check the model's name, version and label") as error:
        client_of(transport, server, **options).certify(IMAGES)
    one_line(error)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_version_can_be_chosen(server, transport):
    assert client_of(transport, server, version=1).certify(IMAGES).predictions.tolist() == [0, 0, -1, 1, 1]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("options", "message"),
    [({"timeout": 1e10}, "timeout must be"), ({"timeout": math.inf}, "timeout must be"),
     ({"timeout": 0}, "timeout must be"), ({"timeout": math.nan}, "timeout must be"),
     ({"timeout": "5"}, "timeout must be"), ({"timeout": None}, "timeout must be"),
     ({"timeout": True}, "timeout must be"), ({"label": ""}, "label must be"), ({"label": 5}, "label must be"),
     ({"model": ""}, "model_name must be"), ({"model": "a\ud800"}, "model_name must be"),
     ({"label": "\udce9"}, "label must be"),
     ({"model": None}, "model_name must be"),
     ({"version": -1}, "version must be"), ({"version": "1"}, "version must be"),
     ({"version": 1, "label": "a"}, "a version or a label")],
)  # fmt: skip
def test_bad_options_are_refused(server, transport, options, message):
    with pytest.raises(ValueError, match=message):
        client_of(transport, server, **options)


@pytest.mark.parametrize(
    "url",
    ["localhost:8501", "ftp://localhost", "http://", "http://a:99999", "http://a?b=c", "http://a:0", "http://a:b",
     "http://[::1", "http://user:secret@a", "http://a b", "http://a/b c", "http://a\n", "http://a/\r\nX: y",
     "http://\u00e4", "http://a/\x00", "", None, 8501, b"http://a", "http://a:", "http://a?", "http://a#",
     "http://a,b:80", "http://::1:8501", "http://[localhost]:8501", "http://[::1]x:8501", "http://-a", "//a:8501",
     "http:a:8501"],
)  # fmt: skip
def test_bad_urls_are_refused(url):
    with pytest.raises(ValueError, match=r"^url must be like http://localhost:8501\. Received: "):
        RestClient(url, "classifier")


@pytest.mark.parametrize("path", ["/v1/models/classifier:predict", "/v1/models/classifier", "/v1", "/proxy/v1/"])
def test_a_url_that_holds_the_models_path_is_refused(path):
    with pytest.raises(
        ValueError, match=r"^url must be like .*, without the model's path, which is built from its name"
    ):
        RestClient(f"http://localhost:8501{path}", "classifier")


@pytest.mark.parametrize(
    ("address", "hint"),
    [("localhost", "; the port is missing"), ("localhost:", "; the port is missing"), ("a:b", "; the port is missing"),
     ("[::1]", "; the port is missing"), ("http://localhost:8500", ", without a scheme (RestClient takes a URL)"),
     ("dns:///a:8500", ", without a scheme (RestClient takes a URL)"),
     ("::1:8500", "; an IPv6 address needs brackets"), ("unix:/tmp/socket", "; the port is missing"),
     ("localhost :8500", ""), (" localhost:8500", ""),
     ("localhost:8500\n", ""), ("localhost:0", ""), ("localhost:65536", ""), ("localhost:+80", "; the port is missing"),
     ("localhost:\u0663", "; the port is missing"), (":8500", ""), ("[]:8500", ""), ("[localhost]:8500", ""),
     ("\u00e4:8500", ""), ("a/b:8500", ""), ("user@a:8500", ""), ("a,b:8500", ""), ("-a:8500", ""), ("", ""),
     (None, ""), (8500, ""), (b"a:8500", "")],
)  # fmt: skip
def test_bad_addresses_are_refused(address, hint):
    like = re.escape(f"address must be host:port, such as localhost:8500 or [::1]:8500{hint}. Received: ")
    with pytest.raises(ValueError, match=f"^{like}") as error:
        GrpcClient(address, "classifier")
    one_line(error)


@pytest.mark.parametrize(
    "address", ["localhost:8500", "127.0.0.1:1", "[::1]:65535", "[fe80::1%eth0]:80", "a-b.example.:80", "a_b:80"]
)
def test_good_addresses_are_taken(address):
    GrpcClient(address, "classifier").close()
    RestClient(f"http://{address}", "classifier")
    RestClient(f"https://{address}/behind/a/proxy/", "classifier")


def test_a_server_is_asked_at_its_ipv6_address(threshold_saved_model):
    if not socket.has_ipv6 or not can_bind("::1"):
        pytest.skip("NEEDS IPv6: ::1 cannot be listened at")
    with ModelServer(threshold_saved_model, host="::1") as server:
        assert server.grpc_address.startswith("[::1]:")
        for transport in TRANSPORTS:
            assert client_of(transport, server).certify(IMAGES).predictions.tolist() == [0, 0, -1, 1, 1]


def can_bind(host):
    try:
        socket.create_server((host, 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_deadline_holds(server, transport):
    over = threading.Event()
    server.before = lambda number: over.wait(30)
    client = client_of(transport, server, timeout=0.2)
    with pytest.raises(DeadlineError, match=r"did not answer within 0\.2 s; raise timeout") as error:
        client.certify(IMAGES)
    over.set()
    one_line(error)
    assert server.count == 1


def test_an_answer_that_drips_does_not_outlast_the_deadline():
    """Each byte comes in time; the whole does not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        over = threading.Event()

        def drip():
            connection, _ = listener.accept()
            with connection:
                raw_http.read_request(connection)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while not over.wait(0.05):
                    connection.sendall(b" ")

        thread = threading.Thread(target=drip)
        thread.start()
        client = RestClient(f"http://127.0.0.1:{listener.getsockname()[1]}", "classifier", timeout=0.5)
        started = time.monotonic()
        with pytest.raises(ServingError, match="did not answer within"):
            client.certify(IMAGES)
        assert time.monotonic() - started < 20
        over.set()
        thread.join()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_unavailable_is_tried_again_until_it_answers(server, transport):
    def recovers(number):
        if number < 4:
            raise StatusError(grpc.StatusCode.UNAVAILABLE, "still loading")

    server.before = recovers
    assert client_of(transport, server, timeout=30).certify(IMAGES).predictions.tolist() == [0, 0, -1, 1, 1]
    assert server.count == 4
    assert len(server.requests) == 1


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("code", ["INTERNAL", "INVALID_ARGUMENT", "NOT_FOUND"])
def test_nothing_else_is_tried_again(server, transport, code):
    def refuse(number):
        raise StatusError(grpc.StatusCode[code], "no")

    server.before = refuse
    with pytest.raises(RefusedError, match="refused"):
        client_of(transport, server).certify(IMAGES)
    assert server.count == 1


def client_at(transport, address, **options):
    if transport == "grpc":
        return GrpcClient(address, "classifier", **options)
    return RestClient(f"http://{address}", "classifier", **options)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_where_nobody_listens_it_says_so_at_once(transport, host):
    address = f"{host}:{free_port()}"
    started = time.monotonic()
    with pytest.raises(UnavailableError, match=f"{address} is unavailable; is a model server listening there") as error:
        client_at(transport, address, timeout=60).certify(IMAGES)
    assert time.monotonic() - started < 20
    one_line(error)


def test_a_host_that_is_none_is_told_at_once_and_one_that_cannot_be_looked_up_now_is_tried_again(monkeypatch):
    client = RestClient("http://somewhere:8501", "classifier", timeout=0.5)
    for number, is_final in ((socket.EAI_NONAME, True), (socket.EAI_AGAIN, False)):
        looked_up = []

        def look_up(host, *_, looked_up=looked_up, number=number, **__):
            looked_up.append(host)
            raise socket.gaierror(number, "no")

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        with pytest.raises(UnavailableError, match="somewhere:8501 is unavailable"):
            client.certify(IMAGES)
        assert (len(looked_up) == 1) is is_final


def test_a_family_of_addresses_that_this_machine_lacks_keeps_nobody_from_the_others(monkeypatch):
    """As a system without IPv6 whose /etc/hosts lists ::1 first."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = listener.getsockname()
        found = [(None, socket.SOCK_STREAM, 0, "", ("::1",)), (socket.AF_INET, socket.SOCK_STREAM, 0, "", here)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        real = socket.socket

        def lacking(family, *others):
            if family is None:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            return real(family, *others)

        monkeypatch.setattr(socket, "socket", lacking)
        assert deadlines.reason_nobody_listens("localhost", here[1], time.monotonic() + 20) is None
        with deadlines.connected("http", "localhost", here[1], time.monotonic() + 20, 1000) as connection:
            assert connection.sock


def test_every_error_that_is_no_bad_input_is_a_serving_error():
    kinds = [getattr(client_lib, name) for name in client_lib.__all__ if name.endswith("Error")]
    assert set(kinds) == {ServingError, UnavailableError, DeadlineError, RefusedError, AnswerError}
    assert all(issubclass(kind, ServingError) and kind.__doc__ for kind in kinds)
    assert not any(issubclass(a, b) for a in kinds for b in kinds if a is not b and b is not ServingError)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_server_that_stays_unavailable_is_given_up_at_the_time_out(server, transport):
    def refuse(number):
        raise StatusError(grpc.StatusCode.UNAVAILABLE, "still loading")

    server.before = refuse
    with pytest.raises(UnavailableError, match=r"is unavailable; .* still loading") as error:
        client_of(transport, server, timeout=0.5).certify(IMAGES)
    one_line(error)
    assert server.count > 1


def test_what_is_cut_off_before_a_word_of_the_answer_is_asked_again():
    """Nothing was seen; REST, where a test can write the answer by hand."""
    answered = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = RestClient(f"http://127.0.0.1:{listener.getsockname()[1]}", "classifier", timeout=30)
        thread = threading.Thread(target=lambda: answered.append(client.certify(IMAGES)))
        thread.start()
        listener.accept()[0].close()
        connection, _ = listener.accept()
        with connection:
            raw_http.read_request(connection)
            body = json.dumps({"outputs": plain(valid_certified(5))}).encode()
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + body)
    thread.join()
    assert answered[0].predictions.tolist() == [0, 1, -1, 0, 1]


def test_what_is_no_tls_is_not_tried_again(server):
    with pytest.raises(ServingError, match="offers no trusted TLS"):
        RestClient(server.rest_url.replace("http", "https"), "classifier", timeout=30).certify(IMAGES)


def test_many_threads_share_a_client(server):
    """Each thread gets the answers to its own images."""
    for transport in TRANSPORTS:
        client, wrong = client_of(transport, server), []

        def ask(value, client=client, wrong=wrong):
            images = np.full((1, 2, 2, 1), value / 8, np.float32)
            for _ in range(5):
                if client.certify(images).votes[0, 1] != round(1000 * value / 8):
                    wrong.append(value)

        threads = [threading.Thread(target=ask, args=(value,)) for value in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def valid_certified(count):
    """Outputs of certify that hold together: classes 0, 1, ABSTAIN, 0, 1, ..."""
    classes = np.array([(0, 1, -1)[i % 3] for i in range(count)], np.int64)
    votes = np.array([((90, 10), (10, 90), (50, 50))[i % 3] for i in range(count)], np.int64)
    return {
        "predicted_class": classes,
        "radius": np.where(classes >= 0, np.float32(0.125), np.float32(0)),
        "p_lower": np.where(classes >= 0, 0.75, 0.25),
        "votes": votes,
        "seed": np.arange(2 * count, dtype=np.int64).reshape(count, 2),
    }


def valid_predicted(count):
    return {
        "predicted_class": np.zeros(count, np.int64),
        "p_value": np.full(count, 0.01),
        "samples": np.full(count, 100),
        "seed": np.zeros((count, 2), np.int64),
    }


def plain(outputs):
    return {name: array.tolist() for name, array in outputs.items()}


def with_value(name, row, value):
    """Outputs -> the same with one value changed."""

    def change(outputs):
        changed = outputs[name].copy()
        changed[row] = value
        return {**outputs, name: changed}

    return change


def without(name):
    return lambda outputs: {key: array for key, array in outputs.items() if key != name}


def with_array(name, change):
    return lambda outputs: {**outputs, name: change(outputs[name])}


# In `valid_certified`, row 0 is class 0 with votes 90 : 10, row 2 abstains.
BROKEN_CERTIFICATES = {
    "no class": with_value("predicted_class", 0, 2),
    "below ABSTAIN": with_value("predicted_class", 0, -2),
    "NaN radius": with_value("radius", 0, np.nan),
    "infinite radius": with_value("radius", 0, np.inf),
    "negative radius": with_value("radius", 0, -0.1),
    "radius where it abstains": with_value("radius", 2, 0.1),
    "tiny radius where it abstains": with_value("radius", 2, np.float32(1e-45)),
    "NaN p_lower": with_value("p_lower", 0, np.nan),
    "p_lower above 1": with_value("p_lower", 0, 1.01),
    "negative p_lower": with_value("p_lower", 2, -0.01),
    "class at p_lower 1/2": with_value("p_lower", 0, 0.5),
    "p_lower above the votes' share": with_value("p_lower", 0, 0.9000001),
    # At alpha = 0.1, the largest that is served, 90 of 100 votes give the 10 % quantile of Beta(90, 11), 0.85012.
    "p_lower that no alpha gives": with_array("p_lower", lambda p: np.where(p > 0.5, 0.8502, p)),
    "class without votes": with_value("predicted_class", 0, 1),
    "ABSTAIN made a class": with_value("predicted_class", 2, 0),
    "radius that no sigma gives": with_value("radius", slice(None), [1e30, 1e30, 0, 1e30, 1e30]),
    "radius of another sigma": with_value("radius", 0, np.float32(0.12501)),
    "p_lower of 1": with_value("p_lower", 0, 1.0),
    "ABSTAIN with p_lower above 1/2": with_value("p_lower", 2, 0.6),
    "more votes in a row": with_value("votes", 0, [91, 10]),
    "votes beyond what is exact": with_value("votes", slice(None), [2**62, 2**61]),
    "negative votes": with_value("votes", 0, [110, -10]),
    "no votes": with_value("votes", 0, [0, 0]),
    "one class": with_array("votes", lambda votes: votes[:, :1]),
    "votes of another rank": with_array("votes", lambda votes: votes[..., None]),
    "votes of rank 1": with_array("votes", lambda votes: votes[:, 0]),
    "scalar class": with_array("predicted_class", lambda classes: np.int64(0)),
    "class of rank 2": with_array("predicted_class", lambda classes: classes[:, None]),
    "seed of one number": with_array("seed", lambda seed: seed[:, :1]),
    "seed below 0": with_value("seed", (3, 1), -1),
    "seed beyond 32 bits": with_value("seed", (0, 0), 2**32),
    "class as a float": with_array("predicted_class", lambda classes: classes.astype(np.float64)),
    "votes as floats": with_array("votes", lambda votes: votes.astype(np.float32)),
    "class as words": with_array("predicted_class", lambda classes: classes.astype(str).astype(object)),
    **{f"without {name}": without(name) for name in answers.CERTIFY_OUTPUTS},
    **{f"a row too few of {name}": with_array(name, lambda array: array[:-1]) for name in answers.CERTIFY_OUTPUTS},
    **{
        f"a row too many of {name}": with_array(name, lambda array: np.concatenate([array, array[:1]]))
        for name in answers.CERTIFY_OUTPUTS
    },
    "nothing": lambda outputs: {},
    "all rows too few": lambda outputs: {name: array[:-1] for name, array in outputs.items()},
}
BROKEN_PREDICTIONS = {
    "below ABSTAIN": with_value("predicted_class", 0, -2),
    "NaN p_value": with_value("p_value", 0, np.nan),
    "p_value above 1": with_value("p_value", 0, 1.5),
    "no samples": with_value("samples", 0, 0),
    "a class at a p_value of 1": with_value("p_value", slice(None), 1.0),
    "classes above the largest alpha": with_value("p_value", slice(None), 0.1000001),
    "ABSTAIN below the smallest alpha": lambda outputs: {
        **outputs,
        "predicted_class": np.full(5, -1),
        "p_value": np.full(5, 1e-6),
    },
    "seed below 0": with_value("seed", (0, 0), -1),
    "seed beyond 32 bits": with_value("seed", (4, 1), 2**40),
    "a class at the p_value of an ABSTAIN": with_value("predicted_class", 0, -1),
    **{f"without {name}": without(name) for name in answers.PREDICT_OUTPUTS},
    **{f"a row too few of {name}": with_array(name, lambda array: array[:-1]) for name in answers.PREDICT_OUTPUTS},
}


def test_what_the_broken_answers_are_made_from_is_whole(client, server):
    server.change = lambda outputs: valid_certified(5)
    assert client.certify(IMAGES).predictions.tolist() == [0, 1, -1, 0, 1]
    server.change = lambda outputs: valid_predicted(5)
    assert client.predict(IMAGES).predictions.tolist() == [0] * 5


@pytest.mark.parametrize("name", BROKEN_CERTIFICATES)
def test_a_broken_certificate_is_none(client, server, name):
    server.change = lambda outputs: BROKEN_CERTIFICATES[name](valid_certified(5))
    with pytest.raises(AnswerError) as error:
        client.certify(IMAGES)
    one_line(error)
    assert server.count == 1


@pytest.mark.parametrize("name", BROKEN_PREDICTIONS)
def test_a_broken_prediction_is_none(client, server, name):
    server.change = lambda outputs: BROKEN_PREDICTIONS[name](valid_predicted(5))
    with pytest.raises(AnswerError) as error:
        client.predict(IMAGES)
    one_line(error)


@pytest.mark.parametrize(
    "body",
    [b"", b"no JSON", b"[]", b"3", b"null", b"{}", b'{"outputs": 3}', b'{"outputs": []}', b'{"outputs": {}}',
     b'{"predictions": []}', b"[" * 100_000, b'{"outputs": ' * 5000, b"\xff\xfe", b'{"outputs": {"radius": [0',
     b'{"outputs": {"radius": [' + b"9" * 10_000 + b"]}}", b'{"outputs": {}, "outputs": {}}',
     b'{"outputs": {"radius": ' + b"[" * 900 + b"]" * 900 + b"}}"],
)  # fmt: skip
def test_a_body_that_is_no_answer(server, body):
    server.raw = lambda _: body
    with pytest.raises(AnswerError) as error:
        client_of("rest", server).certify(IMAGES)
    one_line(error)


@pytest.mark.parametrize(
    ("body", "said"),
    [(b"", "line 1 column 1 (char 0). Received: nothing"),
     (b'{"error": "Malformed request: POST /x"}', "no 'outputs' in it. Received: Malformed request: POST /x"),
     (b"<!DOCTYPE html>\n<html>Log in</html>", "line 1 column 1 (char 0). Received: <!DOCTYPE html>"),
     (b'{"predictions": [1]}', "no 'outputs' in it. Received: {\"predictions\": [1]}"),
     (b'{"outputs": [[0, 1]]}', "serving.export? Received: an output without a name"),
     (b'{"outputs": {"logits": [0], "features": [1]}}', "serving.export? Received: features, logits")],
)  # fmt: skip
def test_what_is_no_answer_is_quoted(server, body, said):
    server.raw = lambda _: body
    with pytest.raises(AnswerError) as error:
        client_of("rest", server).certify(IMAGES)
    assert one_line(error).endswith(said)


@pytest.mark.parametrize(
    "classes",
    [[True, 1, -1, 0, 1], ["0", 1, -1, 0, 1], [None, 1, -1, 0, 1], [[0], 1, -1, 0, 1], [0.0, 1, -1, 0, 1],
     [10**30, 1, -1, 0, 1], {"0": 0}, "01101", 0, [], [[0, 1], [0]], [{}] * 5,
     [1e30, 1, -1, 0, 1], [2**63, 1, -1, 0, 1]],
)  # fmt: skip
def test_json_that_only_looks_like_classes(server, classes):
    server.raw = lambda _: json.dumps({"outputs": {**plain(valid_certified(5)), "predicted_class": classes}}).encode()
    with pytest.raises(AnswerError) as error:
        client_of("rest", server).certify(IMAGES)
    one_line(error)


def tensor(dtype, shape, **values):
    from tensorflow.core.framework import tensor_pb2

    proto = tensor_pb2.TensorProto(dtype=dtype, **values)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


def unknown_rank(proto):
    proto.tensor_shape.unknown_rank = True
    return proto


@pytest.mark.parametrize(
    "proto",
    [
        lambda: tensor(9, [5], int64_val=[0]),  # TensorFlow would repeat the one value five times.
        lambda: tensor(9, [5]),
        lambda: tensor(9, [-1], int64_val=[0] * 5),
        lambda: tensor(9, [10**18], int64_val=[0]),
        lambda: tensor(9, [5], tensor_content=bytes(41)),
        lambda: tensor(9, [5], tensor_content=bytes(48)),
        lambda: tensor(7, [5], string_val=[b"0"] * 5),
        lambda: tensor(4711, [5]),
        lambda: tensor(9, [1] * 64 + [5], int64_val=[0] * 5),
        lambda: tensor(9, [1] * 1000 + [5], int64_val=[0] * 5),
        lambda: tensor(9, [2**62] * 20_000, int64_val=[0] * 5),
        lambda: tensor(9, [0] * 5, int64_val=[]),
        lambda: tensor(9, [5], int64_val=[0] * 5, tensor_content=bytes(40)),
        lambda: unknown_rank(tensor(9, [], int64_val=[0] * 5)),
    ],
)
def test_a_tensor_that_is_none(server, proto):
    from tensorflow_serving.apis import predict_pb2

    def damage(body):
        response = predict_pb2.PredictResponse.FromString(body)
        response.outputs["predicted_class"].CopyFrom(proto())
        return response.SerializeToString()

    server.change, server.raw = lambda outputs: valid_certified(5), damage
    with client_of("grpc", server) as client, pytest.raises(AnswerError) as error:
        client.certify(IMAGES)
    one_line(error)


@pytest.mark.parametrize(
    ("said", "told"),
    [({"name": "other\x1b"}, "another model than classifier;"),
     ({"signature_name": "predict"}, "another signature than serving_default;"),
     ({"name": "classifier", "version": 4}, "another version than 1;"),
     ({"version": 0}, "another version than 1;")],
)  # fmt: skip
def test_an_answer_of_another_model_is_none(server, said, told):
    from tensorflow_serving.apis import predict_pb2

    def relabelled(said):
        def change(body):
            response = predict_pb2.PredictResponse.FromString(body)
            spec = response.model_spec
            spec.name, spec.signature_name = said.get("name", ""), said.get("signature_name", "")
            if "version" in said:
                spec.version.value = said["version"]
            return response.SerializeToString()

        return change

    with client_of("grpc", server, version=1) as client:
        server.raw = relabelled({"name": "classifier", "signature_name": "serving_default", "version": 1})
        assert client.certify(IMAGES).predictions.tolist() == [0, 0, -1, 1, 1]
        server.raw = relabelled(said)
        with pytest.raises(AnswerError, match=told) as error:
            client.certify(IMAGES)
    assert "\x1b" not in one_line(error)
    server.raw = relabelled({"version": 3})
    with client_of("grpc", server) as client:  # the latest, whichever that is
        assert client.certify(IMAGES).predictions.tolist() == [0, 0, -1, 1, 1]


def test_an_output_that_nobody_knows_is_named(server):
    from tensorflow_serving.apis import predict_pb2

    server.raw = lambda _: predict_pb2.PredictResponse(outputs={"logits": tensor(1, [1])}).SerializeToString()
    with client_of("grpc", server) as client, pytest.raises(AnswerError, match=r"Received: logits$") as error:
        client.certify(IMAGES)
    one_line(error)


def test_an_answer_with_a_name_twice_is_none(server):
    whole = json.dumps({"outputs": plain(valid_certified(5))})
    twice = whole.replace('"outputs": {', '"outputs": {"radius": [9.0, 9.0, 0.0, 9.0, 9.0], ')
    server.raw = lambda _: twice.encode()
    with pytest.raises(AnswerError, match="a name that occurs twice"):
        client_of("rest", server).certify(IMAGES)
    server.raw = lambda _: whole.encode()
    assert client_of("rest", server).certify(IMAGES).predictions.tolist() == [0, 1, -1, 0, 1]


def test_what_was_asked_for_is_what_is_answered(server):
    """n = 100 and alpha = 0.01 of 90 votes: Clopper-Pearson's bound is the 1 % quantile of Beta(90, 11), 0.80867."""
    assert stats.beta.ppf(0.01, 90, 11) == pytest.approx(0.80867, abs=5e-6)
    with client_of("grpc", server) as client:
        for p_lower, fits in ((0.8086, True), (0.8087, False)):
            sent = valid_certified(1)
            sent["p_lower"][0] = p_lower
            server.change = lambda outputs, sent=sent: sent
            if fits:
                assert client.certify_custom(IMAGES[:1], n=100, alpha=0.01).predictions.tolist() == [0]
                with pytest.raises(AnswerError, match="a number of votes other than 101 for an image"):
                    client.certify_custom(IMAGES[:1], n=101)
                continue
            with pytest.raises(AnswerError, match=r"a p_lower above Clopper-Pearson's at alpha=0\.01; no part"):
                client.certify_custom(IMAGES[:1], n=100, alpha=0.01)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_answer_beyond_any_size_is_not_taken_in(server, transport):
    server.raw = lambda body: bytes(2**25 + 1)
    with pytest.raises(ServingError, match="send fewer images at once") as error:
        client_of(transport, server).certify(IMAGES)
    one_line(error)


def test_bytes_that_are_no_message(server, caplog):
    server.raw = lambda body: b"\xff" * 20
    with client_of("grpc", server) as client, pytest.raises(ServingError) as error:
        client.certify(IMAGES)
    one_line(error)


def holds_together(answer, count):
    """Whether each row is one that CERTIFY can say, looked at number by number."""
    rows = zip(*(array.tolist() for array in vars(answer).values()), strict=True)
    checked = 0
    for predicted, radius, p_lower, votes, seed in rows:
        assert all(vote >= 0 for vote in votes)
        assert 0 <= p_lower <= 1
        assert len(seed) == 2
        if predicted == -1:
            assert radius == 0
        else:
            assert 0 <= predicted < len(votes)
            assert 0 <= radius < math.inf
            assert 0.5 < p_lower <= votes[predicted] / sum(votes)
        checked += 1
    assert checked == count
    return True


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_damaged_bytes_never_crash_the_client(server, transport):
    """600 whole answers with bytes changed, cut or doubled at random: an error of ours, or an answer that holds."""
    random = np.random.default_rng(1)
    outcomes = {"refused": 0, "whole": 0}

    def damage(body):
        body = bytearray(body)
        for _ in range(random.integers(1, 3)):
            at = int(random.integers(len(body)))
            match random.integers(5):
                case 0:
                    body[at] = random.integers(256)
                case 1:
                    del body[at : at + int(random.integers(1, 20))]
                case 2:
                    body[at:at] = body[at : at + int(random.integers(1, 20))]
                case 3:
                    body[at] ^= 1 << random.integers(8)
                case 4:  # What a JSON number may survive.
                    digits = [place for place, byte in enumerate(body) if chr(byte).isdecimal()] or [at]
                    body[random.choice(digits)] = ord("0") + random.integers(10)
        return bytes(body)

    server.change, server.raw = lambda outputs: valid_certified(3), damage
    client = client_of(transport, server, timeout=30)
    for _ in range(600):
        said = ""
        try:
            outcomes["whole"] += holds_together(client.certify(IMAGES[:3]), 3)
        except ServingError as error:
            outcomes["refused"] += 1
            said = str(error)
        assert "\n" not in said
    # Few survive: a changed number has to agree with the others.
    assert outcomes["whole"] > 10, outcomes
    assert outcomes["refused"] > 30, outcomes


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_random_requests_get_an_error_or_an_answer_for_each_image(server, transport):
    """2,000 arrays of random type, shape and range; only [batch, 2, 2, 1] float32 in [0, 1] may be answered."""
    random = np.random.default_rng(2)
    client = client_of(transport, server)
    answered = 0
    for _ in range(2000):
        shape = tuple(random.integers(0, 4, random.integers(0, 6)))
        if random.random() < 0.4:
            shape = (int(random.integers(1, 4)), 2, 2, 1)
        images = random.random(shape) * random.choice([1, 1, 1, 255, -1])
        images = np.asarray(images).astype(
            random.choice(["f4", "f4", "f4", "f8", "f2", "i8", "u1", "?", "c8", "S3", "O"])
        )
        if images.size and images.dtype.kind == "f" and random.random() < 0.1:
            images.flat[random.integers(images.size)] = random.choice([np.nan, np.inf, -np.inf])
        good = (
            images.dtype == np.float32 and images.shape[1:] == (2, 2, 1) and len(images) > 0
            and bool(((images >= 0) & (images <= 1)).all())
        )  # fmt: skip
        said = ""
        try:
            answered += holds_together(client.certify(images), len(images))
        except (ValueError, ServingError) as error:
            said = str(error)
        assert good == (not said), said
        assert "\n" not in said
    assert answered > 50


def test_the_rest_client_needs_no_tensorflow(server):
    program = (
        "import sys, numpy as np; from serving.client import RestClient;"
        f"print(RestClient({server.rest_url!r}, 'classifier').certify(np.ones((1, 2, 2, 1), np.float32)).predictions);"
        "sys.exit('tensorflow' in sys.modules or 'grpc' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, "[1]\n"), process.stderr


def exported(tmp_path_factory):
    """What `serving.export` writes."""
    from macer_tf import networks
    from macer_tf.model import MACERModel
    from serving.export import export

    directory = tmp_path_factory.mktemp("exported") / "saved_model"
    model = MACERModel(networks.small_cnn(), sigma=0.25, seed=0)
    export(model, directory, n0=10, n=50, alpha=0.01, pixel_max=16)
    return directory


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_serving_export_writes_is_understood(tmp_path_factory, digits, transport):
    with ModelServer(exported(tmp_path_factory)) as server:
        client = client_of(transport, server)
        assert holds_together(client.certify(digits[0][:3]), 3)
        assert client.predict(digits[0][:3]).samples.min() > 0
        with pytest.raises(ServingError, match="one request takes at most 128 images") as error:
            client.certify(digits[0][:129])
        one_line(error)
        if transport == "grpc":
            assert client.certify_custom(digits[0][:2], n=20).votes.sum(axis=1).tolist() == [20, 20]
            with pytest.raises(ServingError, match=r"alpha must lie in \[1e-06, 0\.1\]"):
                client.certify_custom(digits[0][:2], alpha=0.5)


@pytest.fixture(scope="module")
def real_server(threshold_saved_model, tmp_path_factory):
    binary = os.environ.get("MACER_MODEL_SERVER") or shutil.which("tensorflow_model_server")
    if not binary:
        pytest.skip("NEEDS A MODEL SERVER: no tensorflow_model_server on the PATH, and MACER_MODEL_SERVER names none")
    base = tmp_path_factory.mktemp("base")
    shutil.copytree(threshold_saved_model, base / "1")
    ports = free_port(), free_port()
    log = open(base.parent / "model_server.log", "w")  # noqa: SIM115
    process = subprocess.Popen(
        [binary, f"--port={ports[0]}", f"--rest_api_port={ports[1]}", "--model_name=classifier",
         f"--model_base_path={base}"], stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:

        def available():
            assert process.poll() is None, (base.parent / "model_server.log").read_text()[-2000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{ports[1]}/v1/models/classifier", timeout=1) as status:
                    return b'"AVAILABLE"' in status.read()
            except OSError:
                return False

        wait_until(available, seconds=120)
        yield ports
    finally:
        process.terminate()
        process.wait()
        log.close()


def test_a_real_model_server_gives_the_same_answers(real_server):
    grpc_client = GrpcClient(f"127.0.0.1:{real_server[0]}", "classifier")
    rest_client = RestClient(f"http://127.0.0.1:{real_server[1]}", "classifier")
    for client in (grpc_client, rest_client):
        test_certificates_by_hand(client)
        test_predictions_by_hand(client)
        test_a_refusal_says_what_the_server_said(client)
    assert grpc_client.certify_custom(IMAGES, n=100).votes.sum(axis=1).tolist() == [100] * 5
    with pytest.raises(ServingError, match="check the model's name"):
        RestClient(f"http://127.0.0.1:{real_server[1]}", "other").certify(IMAGES)
    assert rest_client.certify(IMAGES).radii.tobytes() == grpc_client.certify(IMAGES).radii.tobytes()
