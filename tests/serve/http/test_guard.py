"""The token, names of the host, pages of other sites, and headers of every answer."""

import time

import httpx
import pytest
from fakes.servers import Server, serving
from samples.pictures import png

TOKEN = "correct-horse"
SMALL = {"prompt": "A fox", "size": "96x64", "num_frames": 9}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server with a token."""
    with serving(tmp_path_factory.mktemp("guarded"), token=TOKEN) as server:
        yield server


@pytest.fixture(scope="module")
def stranger():
    """A client that sends no token of its own."""
    with httpx.Client() as client:
        yield client


def operations(server: Server) -> list[tuple[str, str]]:
    """Returns the method and path of everything in the OpenAPI document, with an id that there is not."""
    document = server.app.openapi()
    return [
        (method.upper(), path.replace("{id}", "video_" + "0" * 32).replace("{model}", "demo"))
        for path, methods in document["paths"].items()
        for method in methods
    ]


def test_without_the_token_nothing_is_answered_but_the_page_and_whether_the_server_lives(guarded, stranger):
    for token in (
        None,
        "",
        "Bearer",
        "Bearer wrong",
        "Basic " + TOKEN,
        "Bearer " + TOKEN + "x",
        "Bearer " + TOKEN[:-1],
        TOKEN,
    ):
        headers = {} if token is None else {"Authorization": token}
        for method, path in [*operations(guarded), ("GET", "/openapi.json"), ("GET", "/nowhere")]:
            answer = stranger.request(method, guarded.url + path, headers=headers)
            if path in ("/healthz", "/readyz"):
                assert answer.status_code == 200
                continue
            assert answer.status_code == 401, (method, path)
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        assert stranger.get(guarded.url, headers=headers).status_code == 200


def test_a_token_that_is_not_taken_is_told_with_what_is_wrong_about_it(guarded, stranger):
    for header, problem in (
        (None, "there is no token - "),
        (TOKEN, "the header Authorization does not begin with 'Bearer ' - "),
        ("Bearer wrong", "the token is wrong - "),
    ):
        headers = {} if header is None else {"Authorization": header}
        message = stranger.get(guarded.url + "/v1/videos", headers=headers).json()["error"]["message"]
        assert message == f"{problem}send the header Authorization: Bearer TOKEN"


def test_with_the_token_everything_is_answered(guarded):
    for method, path in operations(guarded):
        assert guarded.client.request(method, path).status_code != 401, path
    assert guarded.client.post("/v1/videos", json=SMALL).status_code == 200


def test_the_name_of_the_scheme_may_have_any_case(guarded, stranger):
    assert stranger.get(f"{guarded.url}/v1/models", headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200


def test_a_large_upload_without_the_token_is_answered_rather_than_cut_off(guarded, stranger):
    answer = stranger.post(f"{guarded.url}/v1/videos", data=SMALL, files={"input_reference": bytes(20_000_000)})
    assert answer.status_code == 401


def test_no_token_is_in_the_log(guarded, stranger, caplog):
    with caplog.at_level("INFO"):
        stranger.get(f"{guarded.url}/v1/models", headers={"Authorization": f"Bearer {TOKEN}"}, params={"a": "secret"})

    def records_of_requests():
        return [vars(record) for record in caplog.records if record.name == "ltx_serve.requests"]

    until = time.monotonic() + 30
    while not records_of_requests() and time.monotonic() < until:  # the answer is sent first
        time.sleep(0.01)
    records = records_of_requests()
    assert records and all(TOKEN not in str(record) and "secret" not in str(record) for record in records)


def test_without_a_token_only_names_of_this_machine_are_answered(server, stranger):
    for host, status in (
        ("127.0.0.1", 200),
        ("127.0.0.1:1234", 200),
        ("localhost:8000", 200),
        ("[::1]:8000", 200),
        ("example.com", 403),
        ("127.0.0.1.example.com", 403),
        ("localhost.example.com:8000", 403),
        ("192.168.0.1", 403),
        ("127.0.0.1@example.com", 403),
        ("[::1", 403),
        ("", 403),
    ):
        for path in ("/v1/models", "/", "/healthz"):
            answer = stranger.get(server.url + path, headers={"Host": host})
            assert answer.status_code == status, (host, path)


def test_a_page_of_another_site_cannot_ask_for_anything(server, stranger):
    own = server.url.rstrip("/")
    for headers, status in (
        ({"Origin": own}, 200),
        ({"Origin": own, "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Origin": "http://example.com"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[x"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": own, "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ):
        # A form with files is what browsers send to any site without asking it first.
        posted = stranger.post(f"{server.url}/v1/videos", data=SMALL, files={"input_reference": png()}, headers=headers)
        assert posted.status_code == status, headers
        assert stranger.get(f"{server.url}/v1/videos", headers=headers).status_code == status, headers
    preflight = stranger.options(
        f"{server.url}/v1/videos", headers={"Origin": own, "Access-Control-Request-Method": "POST"}
    )
    assert preflight.status_code == 405
    assert not any(name.startswith("access-control") for name in preflight.headers)


def test_a_link_from_another_site_may_lead_to_the_page(server, stranger):
    assert stranger.get(server.url, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


def test_every_answer_has_the_headers_that_keep_browsers_from_guessing_and_embedding(server):
    for method, path in [*operations(server), ("GET", "/"), ("GET", "/nowhere"), ("GET", "/page/page.js")]:
        answer = server.client.request(method, path)
        assert answer.headers["x-content-type-options"] == "nosniff", path
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "server" not in answer.headers


def test_what_is_nowhere_and_methods_that_are_not_are_errors_in_the_same_shape(server):
    for method, path, status in (("GET", "/v2/videos", 404), ("PUT", "/v1/videos", 405), ("GET", "/docs", 404)):
        answer = server.client.request(method, path)
        assert (answer.status_code, set(answer.json()["error"])) == (status, {"message", "type", "param", "code"})


def test_a_bug_is_answered_and_counted_without_telling_what_is_inside(server, monkeypatch):
    monkeypatch.setattr(server.store, "get", lambda id: {}["secret"])
    answer = server.client.get("/v1/videos/video_" + "0" * 32)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["error"]["type"] == "server_error"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    figures = server.client.get("/metrics").text
    assert 'ltx_requests_total{method="GET",route="/v1/videos/{id}",status="500"} 1.0' in figures
    assert 'status="0"' not in figures
